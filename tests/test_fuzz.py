# SPDX-License-Identifier: Apache-2.0
"""Damaged files: whatever the bytes, a reader gives a result or a UserError, soon and in little memory."""

from __future__ import annotations

import io
import pickle
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image

from caffe_to_cmsis_nn.caffe_io.blobs import read_mean, read_weights, write_mean, write_weights
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data import lmdb_images, pictures
from caffe_to_cmsis_nn.data.readers import Hdf5List, ImageList, LevelDb
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.emit import projects, render
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from caffe_to_cmsis_nn.plan import cost, rows
from caffe_to_cmsis_nn.search import journal
from caffe_to_cmsis_nn.search.journal import Journal
from caffe_to_cmsis_nn.search.verdict import Verdict
from caffe_to_cmsis_nn.store import original, record
from caffe_to_cmsis_nn.target import Target
from tests import tiny
from tests.support import write_leveldb

OLD_PROTOTXT = b"""name: "old" # a comment {
layers { name: "data" type: DATA top: "data" top: "label" include: { phase: TEST }
  data_param { source: "data_lmdb" batch_size: 10 backend: LMDB scale: 0.00390625 mean_file: "m" crop_size: 6 } }
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1" convolution_param < num_output: 2 kernel_size: 3
  pad: 1 > }
layers { name: "pool1" type: POOLING bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layers { name: "ip1" type: INNER_PRODUCT bottom: "pool1" top: "ip1" blobs_lr: 1 weight_decay: 0
  inner_product_param { num_output: 3 weight_filler { type: "gaussian" std: 0.01 } } }
layers { name: "a{" type: RELU bottom: "ip1" top: "ip1" relu_param { negative_slope: 0.0 } }
layers { name: "accuracy" type: ACCURACY bottom: "ip1" bottom: "label" top: "accuracy" include { phase: TEST } }
"""

# What the original pickles, cut to one weighted layer: protocol 0 of Python 2.
OLD_PICKLE = b"""ccopy_reg
_reconstructor
p0
(c__main__
Caffe_Quantizer
p1
c__builtin__
object
p2
Ntp3
Rp4
(dp5
S'model_file'
p6
S'net.prototxt'
p7
sS'quant_weight_file'
p8
S'net.caffemodel'
p9
sS'mean_file'
p10
S''
p11
sS'data_layer'
p12
S'data'
p13
sS'accuracy_layer'
p14
S'accuracy'
p15
sS'layer_shape'
p16
(dp17
g13
(I10
L3L
I6
I6
tp18
ssS'wt_dec_bits'
p19
(dp20
S'conv1'
p21
I8
sS'ip1'
p22
I8
ssS'bias_dec_bits'
p23
(dp24
g21
I7
sg22
I7
ssS'act_dec_bits'
p25
(dp26
g13
I0
sg21
I2
sg22
I3
sS'pool1'
p27
I2
ssS'tolerance'
p28
F0.001
sS'layer'
p29
(lp30
g13
ag21
aV\\u0041
asb."""


def _encoded(kind: str) -> bytes:
    """An encoded image in a Datum."""
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def _read_prototxt(path: Path) -> object:
    network = read_prototxt(path)
    source = replace(data_source(network), mean_file="")
    return attach_weights(parse_network(network, "accuracy", source, tiny.IMAGE), tiny.blobs())


def _read_image(path: Path) -> object:
    return pictures.decode(path.read_bytes(), "here")


def _read_list(path: Path) -> object:
    return ImageList().read(path)


def _read_hdf5_list(path: Path) -> object:
    return Hdf5List().read(path)


def _read_hdf5_images(path: Path) -> object:
    path.with_suffix(".txt").write_text(path.name)
    return Hdf5List().read(path.with_suffix(".txt"))


def _read_leveldb(path: Path, suffix: str) -> object:
    """With the bytes in place of the one file of the database that has this suffix."""
    folder = path.parent / f"{suffix}_leveldb"
    (file,) = folder.glob(f"*.{suffix}")
    file.write_bytes(path.read_bytes())
    return LevelDb().probe(folder).read(folder)


def _ask(path: Path) -> list[Verdict]:
    """A judge's answers, from a journal or made up; the journal stays as another run leaves it."""
    answers = Journal(path, "key")

    def verdict(images: int) -> Verdict:
        return Verdict(np.arange(images) % 3 > 0, np.linspace(0, 1, images))

    judged = [answers.remember(count, partial(verdict, count), journal._plain, journal._verdict) for count in (8, 13)]
    answers.close()
    return judged


def _read_journal(path: Path) -> object:
    return _ask(path), _ask(path)  # the second one finds what the first has appended


def _read_pickle(path: Path) -> object:
    """As code_gen.py does, which writes nothing before all is rendered."""
    loaded = record.load(path)
    network = loaded.network or original.rebuild(loaded.attributes, path.parent, Target())
    plan = rows.plan(network)
    return render.render(network, plan, projects.CodeOptions()), cost.table(network, plan, weights_in_ram=False)


Reader = Callable[[Path], object]
READERS: dict[str, Reader] = {
    "prototxt": _read_prototxt,
    "old prototxt": _read_prototxt,
    "caffemodel": read_weights,
    "h5": read_weights,
    "new h5": read_weights,
    "mean": read_mean,
    "lmdb": lmdb_images.read,
    "large lmdb": lmdb_images.read,
    "branched lmdb": lmdb_images.read,
    "pickle": _read_pickle,
    "old pickle": _read_pickle,
    "png": _read_image,
    "jpeg": _read_image,
    "list of images": _read_list,
    "list of HDF5 files": _read_hdf5_list,
    "HDF5 images": _read_hdf5_images,
    "journal": _read_journal,
}
LEVELDB_FILES = ("log", "ldb") if find_spec("plyvel") else ()  # it has no wheel for the newest Pythons
READERS.update({f"LevelDB {suffix}": partial(_read_leveldb, suffix=suffix) for suffix in LEVELDB_FILES})


def samples(folder: Path) -> dict[str, bytes]:
    """A valid small file for each reader; the files that an old pickle names stay in the folder."""
    tiny.quantize(folder)
    write_weights(folder / "net.caffemodel", "net", tiny.blobs(), tiny.TYPES)
    write_mean(folder / "mean.binaryproto", np.full(tiny.IMAGE, 120, np.float32))
    with h5py.File(folder / "new.h5", "w", libver="latest") as file:
        for i, blob in enumerate(tiny.blobs()["conv1"]):
            file.create_dataset(f"data/conv1/{i}", data=blob, chunks=True, compression="gzip", shuffle=True)
    # Values on pages of their own, and pages that lead to pages.
    lmdb_images.write(folder / "large_lmdb", np.zeros((9, 3, 30, 30), np.uint8), range(9))
    lmdb_images.write(folder / "many_lmdb", np.zeros((150, 1, 2, 2), np.uint8), range(150))
    databases = {
        f"LevelDB {suffix}": f"{suffix}_leveldb" for suffix in ("log", "ldb") if f"LevelDB {suffix}" in READERS
    }
    images = np.random.default_rng(0).integers(0, 256, (9, *tiny.IMAGE), dtype=np.uint8)
    for reader, name in databases.items():
        write_leveldb(folder / name, images, range(9), 8 if reader.endswith("ldb") else None)
    names = {
        "prototxt": "net.prototxt",
        "caffemodel": "net.caffemodel",
        "h5": "net.caffemodel.h5",
        "new h5": "new.h5",
        "mean": "mean.binaryproto",
        "lmdb": "data_lmdb/data.mdb",
        "large lmdb": "large_lmdb/data.mdb",
        "branched lmdb": "many_lmdb/data.mdb",
        "pickle": "net.pkl",
        "list of images": "images.txt",
        "list of HDF5 files": "files.txt",
        "HDF5 images": "images.h5",
        "journal": "net.journal",
    }
    encoded = {"png": _encoded("PNG"), "jpeg": _encoded("JPEG")}
    for kind, content in encoded.items():
        (folder / f"0.{kind}").write_bytes(content)
    (folder / "images.txt").write_text("0.png 0\n0.jpeg 2\n")
    with h5py.File(folder / "images.h5", "w") as file:
        file["data"], file["label"] = np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3), np.arange(2.0)
    (folder / "files.txt").write_text("images.h5\n images.h5\n")
    _ask(folder / "net.journal")
    files = {reader: (folder / name).read_bytes() for reader, name in names.items()}
    for suffix in LEVELDB_FILES:
        (file,) = (folder / f"{suffix}_leveldb").glob(f"*.{suffix}")
        files[f"LevelDB {suffix}"] = file.read_bytes()
    return {**files, **encoded, "old prototxt": OLD_PROTOTXT, "old pickle": OLD_PICKLE}


# --- damage -----------------------------------------------------------------------------------------------------------

Edit = tuple[str, float, bytes]
# What a field may hold when it was written by a program that went wrong, beside random bytes.
TELLING = [
    (0).to_bytes(8, "little"),
    b"\xff" * 8,
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\x7f",
    b"99999999",
    b"{",
    b"(",
    b'"',
    b"\n",
]
WAYS = ["replace", "insert", "delete", "cut", "copy"]
EDITS = st.tuples(
    st.sampled_from(WAYS),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(TELLING) | st.binary(min_size=1, max_size=8),
)


def damage(content: bytes, edits: list[Edit]) -> bytes:
    """Content after edits, each at a place that is given as a share of the length."""
    for what, place, value in edits:
        at, size = int(place * len(content)), len(value)
        if what == "cut":
            content = content[:at]
        elif what == "copy":
            content = content[:at] + content[at // 2 : at // 2 + 8 * size] + content[at:]
        else:
            new = b"" if what == "delete" else value
            content = content[:at] + new + content[at + (0 if what == "insert" else size) :]
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that a pickle may name."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def sound(folder: Path) -> dict[str, bytes]:
    return samples(folder)


SECONDS = 10


def outcome(reader: str, path: Path, content: bytes) -> str:
    """Reads bytes, in little time of the processor; says how it ended."""
    path.write_bytes(content)
    start = time.process_time()
    try:
        READERS[reader](path)
        end = "read"
    except UserError as error:
        assert "\n" not in str(error)
        end = "refused"
    assert time.process_time() - start < SECONDS
    return end


@pytest.mark.parametrize("reader", READERS)
def test_sound_files_are_read(folder: Path, sound: dict[str, bytes], reader: str) -> None:
    assert outcome(reader, folder / "sound", sound[reader]) == "read"


IN_PROCESS = [reader for reader in READERS if "LevelDB" not in reader]


@pytest.mark.parametrize("reader", [reader for reader in READERS if "LevelDB" in reader])
@given(edits=st.lists(EDITS, min_size=1, max_size=6))
@settings(max_examples=10)
def test_damaged_leveldbs_end_in_a_result_or_one_sentence(
    folder: Path, sound: dict[str, bytes], reader: str, edits: list[Edit]
) -> None:
    """Few, since each is read in a process of its own."""
    event(outcome(reader, folder / "damaged", damage(sound[reader], edits)))


@pytest.mark.parametrize("reader", IN_PROCESS)
@given(edits=st.lists(EDITS, min_size=1, max_size=6))
@settings(max_examples=settings().max_examples // 2)
def test_damaged_files_end_in_a_result_or_one_sentence(
    folder: Path, sound: dict[str, bytes], reader: str, edits: list[Edit]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    event(outcome(reader, folder / "damaged", damage(sound[reader], edits)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kilobytes


@pytest.mark.parametrize("reader", IN_PROCESS)
@given(content=st.binary(max_size=300))
@settings(max_examples=settings().max_examples // 4)
def test_arbitrary_bytes_end_in_a_result_or_one_sentence(folder: Path, reader: str, content: bytes) -> None:
    # No bytes at all are a caffemodel without layers.
    event(outcome(reader, folder / "arbitrary", content))


def test_an_old_pickle_with_a_billion_channels(folder: Path, sound: dict[str, bytes]) -> None:
    """Found by damage: its mean would have taken gigabytes."""
    channels = b"(I10\nL3L\n"
    assert sound["old pickle"].count(channels) == 1
    many = sound["old pickle"].replace(channels, b"(I10\nL999999993L\n")
    assert outcome("old pickle", folder / "many", many) == "refused"


# --- networks whose values were changed -------------------------------------------------------------------------------

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    1 << 31,
    1 << 70,
    0.5,
    float("nan"),
    "",
    "data",
    "conv1",
    b"",
    b"\xff" * 12,
    [],
    {},
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container below a value, with each of its keys."""
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@given(data=st.data())
def test_changed_networks_end_in_code_or_one_sentence(
    folder: Path, sound: dict[str, bytes], data: st.DataObject
) -> None:
    content = pickle.loads(sound["pickle"])
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(content["network"])))
        container[key] = data.draw(st.sampled_from(VALUES))
    event(outcome("pickle", folder / "changed", pickle.dumps(content)))
