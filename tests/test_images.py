# SPDX-License-Identifier: Apache-2.0
"""Test images that ImageData and HDF5Data layers name, from the prototxt to the known-answer test."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.caffe_io.blobs import write_weights
from caffe_to_cmsis_nn.data import image_set, lmdb_images, pictures
from caffe_to_cmsis_nn.data.readers import Hdf5List, ImageList
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.pipeline.job import prepare
from caffe_to_cmsis_nn.store import record
from tests import tiny
from tests.generated import generate, without_fingerprint
from tests.test_lmdb_images import write_datums

COUNT = 12
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (COUNT, *tiny.IMAGE), dtype=np.uint8)
LABELS = RNG.integers(0, tiny.CLASSES, COUNT)
LISTED = 'type: "ImageData" image_data_param { source: "list.txt" batch_size: 5 root_folder: "pictures/"'
MEAN, SCALE = 120, 1 / 255
DATA = {
    "lmdb": 'type: "Data" data_param { source: "data_lmdb" batch_size: 5 backend: LMDB }',
    "pictures": LISTED + " }",
    "whole numbers": 'type: "HDF5Data" hdf5_data_param { source: "whole.txt" batch_size: 5 }',
    "scaled": 'type: "HDF5Data" hdf5_data_param { source: "scaled.txt" batch_size: 5 shuffle: true }',
}


def write(folder: Path, data: str) -> list[str]:
    """The tiny network after a data layer, with the images in every form; returns nn_quantizer's arguments."""
    lmdb_images.write(folder / "data_lmdb", PIXELS, LABELS)
    (folder / "pictures").mkdir()
    for i, image in enumerate(PIXELS):
        Image.fromarray(image[::-1].transpose(1, 2, 0)).save(folder / "pictures" / f"a {i}.png")
    lines = [f"a {i}.png {label}\n" for i, label in enumerate(LABELS)]
    (folder / "list.txt").write_text("".join(lines) + "\n")
    for name, values in {"whole": PIXELS, "scaled": (PIXELS - np.float32(MEAN)) * np.float32(SCALE)}.items():
        parts = {f"{name}_1.h5": slice(0, 5), f"{name}_2.h5": slice(5, COUNT)}
        (folder / f"{name}.txt").write_text("\n".join(parts))
        for file, part in parts.items():
            with h5py.File(folder / file, "w") as out:
                out["data"], out["label"] = values[part].astype(np.float32), LABELS[part].astype(np.float32)
    top = 'top: "data" top: "label"'
    accuracy = 'layer { name: "accuracy" type: "Accuracy" bottom: "ip1" bottom: "label" top: "accuracy" }'
    (folder / "net.prototxt").write_text(f'layer {{ name: "data" {top} {data} }}\n{tiny.LAYERS}\n{accuracy}\n')
    write_weights(folder / "net.caffemodel.h5", "net", tiny.blobs(), tiny.TYPES)
    names = {"--model": "net.prototxt", "--weights": "net.caffemodel.h5", "--save": "net.pkl"}
    arguments = [part for flag, name in names.items() for part in (flag, str(folder / name))]
    return [*arguments, "--mean", str(MEAN), "--scale", str(SCALE)]


@pytest.mark.parametrize("form", ["pictures", "scaled"])
def test_every_form_gives_the_same_network_and_test_images(form: str, tmp_path: Path) -> None:
    written = {}
    for name in ("lmdb", form):
        (tmp_path / name).mkdir()
        arguments = write(tmp_path / name, DATA[name])
        job = prepare(nn_quantizer.parse_arguments(arguments))
        np.testing.assert_array_equal(job.images, PIXELS)
        np.testing.assert_array_equal(job.labels, LABELS)
        assert nn_quantizer.main([*arguments, "--objective", "caffe", "--iterations", "2"]) == 0
        folder = generate(tmp_path / name / "net.pkl", tmp_path / name / "code", "--test_images", "7")
        texts = ((folder / file).read_text() for file in ("test_images.h", "weights.h"))
        written[name] = [without_fingerprint(text.split("*/", 1)[1]) for text in texts]
    assert written["lmdb"] == written[form]


def test_whole_numbers_need_no_flags(tmp_path: Path) -> None:
    arguments = write(tmp_path, DATA["whole numbers"])[:6]
    job = prepare(nn_quantizer.parse_arguments([*arguments, "--iterations", "1"]))
    np.testing.assert_array_equal(job.images, PIXELS[:5])


# What cv2.resize (OpenCV 4.8.1) makes of this image, height x width.
SMALL = (np.arange(60) * 37 % 256).astype(np.uint8).reshape(4, 5, 3)
RESIZED = {
    (3, 3): """44 81 118 186 10 47 158 167 61 102 139 133 31 68 105 130 82 119 159 125 147 88 125 162 102 139 105""",
    (2, 9): """22 59 96 59 96 133 120 157 194 125 105 142 116 25 62 106 86 123 111 133 156 172 124 76 210 119 28 108 145
        182 145 139 133 206 129 53 154 120 86 74 111 148 135 172 138 168 205 128 88 125 119 40 77 114""",
    (7, 6): """0 37 74 83 120 157 176 63 100 161 49 86 105 142 115 188 225 6 15 52 89 99 136 172 138 79 116 123 64 101
        120 134 130 203 149 21 40 77 114 123 160 197 77 103 140 63 89 126 144 122 155 228 27 46 65 102 139 148 185 126
        91 128 111 77 114 151 137 142 179 125 34 71 89 126 163 172 196 54 115 145 83 101 138 167 130 167 190 21 58 95
        113 150 188 197 110 79 140 108 107 126 163 131 154 191 105 45 83 120 129 166 203 212 57 94 155 86 123 141 178
        109 170 207 52 61 98 135""",
}


@pytest.mark.parametrize("size", RESIZED)
def test_resizing_is_opencvs(size: tuple[int, int]) -> None:
    np.testing.assert_array_equal(pictures.resize(SMALL, *size).ravel(), np.array(RESIZED[size].split(), int))


def test_resizing_to_half_takes_means() -> None:
    np.testing.assert_array_equal(pictures.resize(np.array([[[1], [2]], [[3], [4]]], np.uint8), 1, 1), [[[3]]])


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", True, [30, 20, 10]),
        ("RGB", False, [18]),  # 0.299 * 10 + 0.587 * 20 + 0.114 * 30
        ("RGBA", True, [30, 20, 10]),
        ("L", True, [18, 18, 18]),
        ("L", False, [18]),
    ],
)
def test_colours(mode: str, color: bool, expected: list[int], tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), (10, 20, 30)).convert(mode).save(tmp_path / "a.png")
    (tmp_path / "list").write_text(f"{tmp_path}/a.png 7\n")
    images, labels = ImageList(color=color, height=3, width=3).read(tmp_path / "list")
    assert images.shape == (1, len(expected), 3, 3)
    assert images[0, :, 0, 0].tolist() == expected
    assert labels.tolist() == [7]


@pytest.mark.parametrize("listed", ["a.png", "a.png ", "a.png x", "a.png 1.5", "a.png -1", "a.png 99999999999"])
def test_a_line_that_is_no_path_and_label(listed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write(tmp_path, DATA["pictures"])
    (tmp_path / "list.txt").write_text(f"a 0.png 0\n\n{listed}\n")
    refused(arguments, capsys, "list.txt', line 3: 'a.png")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], message: str) -> None:
    """One sentence, exit code 2, nothing written."""
    assert nn_quantizer.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path(arguments[5]).exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LISTED + " new_height: 4 }", "new_height and new_width go together"),
        (LISTED + " new_height: 65536 new_width: 65536 }", "are too large"),
        (LISTED + " rand_skip: 3 }", "rand_skip is random"),
        (LISTED.replace("list.txt", "empty.txt") + " }", "is empty"),
        (LISTED.replace("list.txt", "none.txt") + " }", "the list of images 'none.txt' does not exist"),
        (LISTED.replace("pictures/", "elsewhere/") + " }", "the image 'elsewhere/a 0.png' does not exist"),
        (LISTED.replace("list.txt", "broken.txt") + " }", "is truncated, damaged or of another kind"),
        (
            LISTED.replace("list.txt", "mixed.txt") + " }",
            "but the first has (3, 6, 6): --resize HEIGHTxWIDTH makes them equal",
        ),
        (DATA["scaled"] + " transform_param { scale: 2 }", "HDF5Data takes no transform_param"),
        (DATA["scaled"].replace("scaled", "flat"), ", 9, 1), allowed are (images, channels, height, width)"),
        (DATA["scaled"].replace("scaled", "short"), "is not one class for each of 4 images"),
        (DATA["scaled"].replace("scaled", "nameless"), "has no data set 'label'; it has: data"),
        (DATA["scaled"].replace("scaled", "text"), "list.txt' is truncated, damaged or of another kind"),
        (DATA["scaled"].replace("scaled", "empty"), "leads to no images"),
        (DATA["whole numbers"], "say with --mean and --scale what was done to them (now: mean 120, scale 0.00392157)"),
    ],
)
def test_declined(data: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write(tmp_path, data)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "broken.txt").write_text("broken.png 0\n")
    (tmp_path / "pictures" / "broken.png").write_bytes((tmp_path / "pictures" / "a 0.png").read_bytes()[:60])
    (tmp_path / "mixed.txt").write_text("a 0.png 0\nb.png 1\n")
    Image.new("RGB", (7, 6)).save(tmp_path / "pictures" / "b.png")
    (tmp_path / "text.txt").write_text("list.txt\n")
    images = np.zeros((4, *tiny.IMAGE), np.float32)
    for name, sets in {
        "flat": {"data": np.zeros((4, 9, 1)), "label": np.zeros(4)},
        "short": {"data": images, "label": np.zeros(3)},
        "nameless": {"data": images},
    }.items():
        (tmp_path / f"{name}.txt").write_text(f"{name}.h5\n")
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.update(sets)
    refused(arguments, capsys, message)


@pytest.mark.parametrize(
    ("value", "pixel"), [(-0.009, 0), (0, 0), (255.009, 255), (-1, None), (256, None), (7.5, None)]
)
def test_what_is_a_pixel(value: float, pixel: int | None, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.h5\n")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.update({"data": np.full((1, *tiny.IMAGE), value, np.float32), "label": np.zeros(1)})
    with contextlib.nullcontext() if pixel is not None else pytest.raises(UserError, match=r"not \(pixel - mean\)"):
        assert (Hdf5List().read(tmp_path / "list.txt")[0] == pixel).all()


def test_a_mean_file_is_no_way_to_say_what_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused([*write(tmp_path, DATA["scaled"])[:6], "--mean", "a.binaryproto"], capsys, "--mean takes values")


def test_lmdb_in_place_of_the_list(tmp_path: Path) -> None:
    arguments = write(tmp_path, LISTED.replace("list.txt", "/somebody's/list.txt") + " }")
    job = prepare(nn_quantizer.parse_arguments([*arguments, "--lmdb", str(tmp_path / "data_lmdb")]))
    np.testing.assert_array_equal(job.images, PIXELS)


@pytest.mark.parametrize(("form", "file"), [("lmdb", "data_lmdb"), ("pictures", "list.txt")])
def test_resize(form: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures of different sizes become equal, for the search, for test images and when the pickle is evaluated."""
    arguments = write(tmp_path, DATA[form])
    stored = [RNG.integers(0, 256, (6 + i, 6 + 2 * i, 3), dtype=np.uint8) for i in range(COUNT)]  # BGR
    for i, image in enumerate(stored):
        Image.fromarray(image[:, :, ::-1]).save(tmp_path / "pictures" / f"a {i}.png")
    shutil.rmtree(tmp_path / "data_lmdb")
    write_datums(
        tmp_path / "data_lmdb",
        *(
            pb.Datum(encoded=True, data=(tmp_path / "pictures" / f"a {i}.png").read_bytes(), label=LABELS[i])
            for i in range(COUNT)
        ),
    )
    refused(arguments, capsys, "--resize")
    _, height, width = tiny.IMAGE
    arguments += ["--resize", f"{height}x{width}"]
    expected = np.stack([pictures.resize(image, height, width).transpose(2, 0, 1) for image in stored])
    np.testing.assert_array_equal(prepare(nn_quantizer.parse_arguments(arguments)).images, expected)
    assert nn_quantizer.main(arguments) == 0
    network = record.load(tmp_path / "net.pkl").network
    assert network
    np.testing.assert_array_equal(network.reader.read_at(tmp_path / file, [5, 2])[0], expected[[5, 2]])
    generate(tmp_path / "net.pkl", tmp_path / "code", "--test_images", "7")
    assert nn_quantizer.main(["--eval", str(tmp_path / "net.pkl")]) == 0
    large = nn_quantizer.parse_arguments([*arguments, "--resize", "99999x99999"])
    with pytest.raises(UserError, match="height 99999 and width 99999 to resize to are too large"):
        prepare(large)


def test_resize_is_for_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "--resize is for pictures in an LMDB, a LevelDB or files, and not for a list of HDF5 files"
    refused([*write(tmp_path, DATA["scaled"]), "--resize", "8x8"], capsys, message)
    write_datums(tmp_path / "features", pb.Datum(channels=1, height=1, width=2, float_data=[0.5, 1]))
    (tmp_path / "a").mkdir()
    model = [*write(tmp_path / "a", DATA["lmdb"])[:6]]
    arguments = [*model, "--lmdb", str(tmp_path / "features"), "--resize", "8x8"]
    refused(arguments, capsys, "--resize is for pictures, and these are features")
    with pytest.raises(SystemExit):
        nn_quantizer.parse_arguments([*arguments, "--resize", "8"])
    assert "'8' is not HEIGHTxWIDTH, for example 32x32" in capsys.readouterr().err


@pytest.mark.parametrize(("form", "file"), [("lmdb", "data_lmdb"), ("pictures", "list.txt"), ("scaled", "scaled.txt")])
def test_images_by_their_positions(
    form: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those asked for are read, and no others; where one does not exist, none is."""
    assert nn_quantizer.main(write(tmp_path, DATA[form])) == 0
    network = record.load(tmp_path / "net.pkl").network
    assert network
    decoded: list[int] = []

    def counted(decode: Callable[..., Any]) -> Callable[..., Any]:
        def decode_and_count(*arguments: Any) -> Any:
            images = decode(*arguments)
            decoded.extend(range(len(images) if images.ndim == 4 else 1))
            return images

        return decode_and_count

    monkeypatch.setattr(image_set, "datum_values", counted(image_set.datum_values))
    monkeypatch.setattr(pictures, "read", counted(pictures.read))
    monkeypatch.setattr(Hdf5List, "_pixels", counted(Hdf5List._pixels))
    positions = [7, 2, 7, 11, 4]
    images, labels = network.reader.read_at(tmp_path / file, positions)
    np.testing.assert_array_equal(images, PIXELS[positions])
    np.testing.assert_array_equal(labels, LABELS[positions])
    assert network.reader.count(tmp_path / file) == COUNT
    assert len(decoded) == 4
    decoded.clear()
    for flags, message in {
        ("--images", "3,999999"): "has no image at position 999999: it holds positions 0 to 11",
        ("--test_images", "999999"): "holds 12 images, fewer than the requested 999999",
    }.items():
        capsys.readouterr()
        assert code_gen.main(["--model", str(tmp_path / "net.pkl"), "--out_dir", str(tmp_path / "c"), *flags]) == 2
        assert message in capsys.readouterr().err
    assert not decoded
