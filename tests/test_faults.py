# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, disks that are full, folders that are read-only, and two runs at once."""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image

import nn_quantizer
from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io.blobs import write_mean
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.data.image_set import StoredImages
from caffe_to_cmsis_nn.engines import engine
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.quantized import SourceFile
from caffe_to_cmsis_nn.pipeline import quantize
from caffe_to_cmsis_nn.store import record
from tests import children, small, test_datasets, tiny
from tests.children import bound_by_permissions, killed_at, little_disk, writes_below
from tests.generated import generate
from tests.support import ROOT, run, tool

KILLS = int(os.environ.get("KILLS", "3"))  # at random times, and as many before random changes of files

Contents = dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """A script that writes to `out` below the folder of its inputs, and arguments that give two different outputs."""

    script: str
    folder: Path
    arguments: tuple[Sequence[str], Sequence[str]]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def found(self) -> Contents:
        """The output files, and what else is there."""
        files_ = [path for path in self.out.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.out)): path.read_bytes() for path in files_}

    def complete(self, which: int) -> Contents:
        """The output of a run to its end, which leaves nothing else behind."""
        ended = children.run(self.folder, self.script, self.arguments[which])
        assert ended.code == 0, ended
        assert not ended.err, ended
        assert not list(self.out.rglob(f"{files.UNFINISHED}*"))
        return self.found()


def quantizer(folder: Path) -> Case:
    arguments = [*tiny.write(folder), "--objective", "caffe"]
    (folder / "out").mkdir()
    shutil.move(folder / "net.caffemodel.h5", folder / "out")
    arguments[3] = str(folder / "out" / "net.caffemodel.h5")
    arguments[5] = str(folder / "out" / "net.pkl")
    return Case("nn_quantizer", folder, (arguments, [*arguments, "--scale", "0.3"]))


def generator(folder: Path) -> Case:
    arguments = ["--model", str(tiny.quantize(folder)), "--out_dir", str(folder / "out"), "--target", "host"]
    return Case("code_gen", folder, (arguments, [*arguments, "--profile", "--weights_in", "ram", "--test_images", "3"]))


def pictures(folder: Path) -> Case:
    for name in ("cat", "dog"):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{i}.png")
    out = str(folder / "out")
    arguments = [str(folder / "pictures"), out, "--mean", f"{out}/mean.binaryproto"]
    return Case("make_lmdb", folder, (arguments, [*arguments, "--gray"]))


def cifar10(folder: Path) -> Case:
    arguments = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        batches = {name: (rng.integers(0, 256, (4, 3072), np.uint8), [0, 1, 2, 3]) for name in test_datasets.BATCHES}
        archive = test_datasets.binary_archive(folder / f"{seed}.tar.gz", batches)
        arguments.append(["--archive", str(archive), "--out", str(folder / "out")])
    return Case("get_cifar10", folder, (arguments[0], arguments[1]))


CASES = (quantizer, generator, pictures, cifar10)


def test_what_is_killed_leaves_old_or_new_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each file is the old or the new one, and the next run ends well and clears away what was left."""
    random_ = random.Random(0)
    for make in CASES:
        case = make(tmp_path_factory.mktemp(make.__name__))
        start = time.monotonic()
        outputs = [case.complete(0), case.complete(1)]
        seconds = (time.monotonic() - start) / 2
        assert set(outputs[0]) == set(outputs[1])
        changed, killed = {name for name in outputs[0] if outputs[0][name] != outputs[1][name]}, 0
        assert len(changed) >= 2
        for trial in range(2 * KILLS):
            new = trial % 2
            if trial < KILLS:
                child, wait = children.start(case.folder, case.script, case.arguments[new])
                time.sleep(random_.uniform(0, seconds))
                child.kill()
            else:
                number = random_.randrange(8 * len(changed))
                _, wait = children.start(
                    case.folder, case.script, case.arguments[new], (killed_at, number, str(case.out))
                )
            ended = wait()
            assert ended.code in (0, -9), ended
            killed += ended.code == -9
            for name, content in case.found().items():
                whole = name in outputs[0] and content in (outputs[0][name], outputs[1][name])
                assert whole or files.UNFINISHED in name, (make, trial, name)
            assert case.complete(new) == outputs[new]
        assert killed >= KILLS // 2


@pytest.fixture(params=CASES, ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    made: Case = request.param(tmp_path)
    return made


def test_a_full_disk_changes_nothing(case: Case) -> None:
    other, before = case.complete(1), case.complete(0)
    sizes = sorted(len(content) for name, content in other.items() if content != before[name])
    for most in (0, sizes[0] // 2, sizes[-1] - 1):
        ended = children.run(case.folder, case.script, case.arguments[1], (little_disk, most))
        assert ended.code == 2, (most, ended)
        assert ended.err.startswith(f"{case.script}: cannot write") and ended.err.count("\n") == 1, ended
        assert case.found() == before


def test_only_outputs_are_opened_for_writing(case: Case) -> None:
    """Whatever files the inputs name."""
    ended = children.run(case.folder, case.script, case.arguments[0], (writes_below, str(case.out)))
    assert (ended.code, ended.err) == (0, "")
    ended = children.run(case.folder, case.script, case.arguments[1], (writes_below, str(case.folder / "other")))
    assert "was opened for writing" in ended.err


def protect(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_inputs_on_a_read_only_medium(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    """They are read there, which leaves no lock files; writing there is declined in one sentence."""
    before = case.complete(0)
    protect(case.folder)
    ended = children.run(case.folder, case.script, case.arguments[1], (bound_by_permissions,))
    assert ended.code == 2, ended
    assert f"{case.script}: cannot write" in ended.err.splitlines()[-1]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    moved = [argument.replace(str(case.out), str(elsewhere)) for argument in case.arguments[0]]
    if case.script == "nn_quantizer":
        moved[3] = case.arguments[0][3]  # the weights; their quantized form goes where the pickle goes
    ended = children.run(case.folder, case.script, moved, (bound_by_permissions,))
    assert ended.code == 0, ended
    names = {Path(name).name for name in before if not name.endswith(".h5")}
    assert {path.name for path in elsewhere.rglob("*") if path.is_file()} == names
    assert case.found() == before


def test_two_runs_at_once_do_not_mix(tmp_path: Path) -> None:
    """Whatever the order, all files come from one run, and a user's own file stays."""
    for make in (quantizer, generator):
        folder = tmp_path / make.__name__
        folder.mkdir()
        case = make(folder)
        outputs = [case.complete(0), case.complete(1)]
        (case.out / "notes.txt").write_text("mine")
        for trial in range(KILLS):
            waits = [children.start(case.folder, case.script, a)[1] for a in case.arguments[:: 1 - 2 * (trial % 2)]]
            assert [wait().code for wait in waits] == [0, 0]
            found = case.found()
            assert found.pop("notes.txt") == b"mine"
            assert found in outputs


def test_a_run_waits_for_another_one_that_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    with files.locked(tmp_path) as alone:
        assert alone
        with pytest.raises(UserError, match="another run is writing to"):
            files.write(tmp_path / "a", b"")
    assert files.write(tmp_path / "a", b"")
    assert os.listdir(tmp_path) == ["a"]


def test_what_was_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / f"{files.UNFINISHED}abc").mkdir()
    (tmp_path / f"{files.UNFINISHED}abc" / "a").write_text("half")
    files.write(tmp_path / "a", b"whole")
    assert os.listdir(tmp_path) == ["a"]


def test_files_are_replaced_together(tmp_path: Path) -> None:
    """One that cannot be replaced keeps the others from being replaced."""
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"cannot write '.*b': it is not a file"):
        files.write_all({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert (tmp_path / "a").read_bytes() == b"old"
    assert files.write_all({tmp_path / "a": b"old", tmp_path / "c" / "d": b"new"}) == [tmp_path / "c" / "d"]
    assert not files.writable(Path(os.devnull))


def test_permissions_stay_and_links_are_followed(tmp_path: Path) -> None:
    shared, link = tmp_path / "shared", tmp_path / "link"
    shared.write_bytes(b"old")
    shared.chmod(0o440)
    link.symlink_to(shared)
    assert files.writable(link)
    files.write(link, b"new")
    assert link.is_symlink()
    assert (shared.read_bytes(), shared.stat().st_mode & 0o777) == (b"new", 0o440)


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.symlink_to(second)
    second.symlink_to(first)
    assert not files.writable(first)
    with pytest.raises(UserError, match=r"cannot write '.*': it is not a file"):
        files.write(first, b"new")
    assert first.is_symlink()
    assert second.is_symlink()


def test_standard_output_on_a_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    arguments = ["--model", str(tiny.quantize(tmp_path)), "--out_dir", str(tmp_path / "code")]
    command = f"exec {sys.executable} {ROOT}/code_gen.py {' '.join(arguments)} > /dev/full"
    done = run("sh", "-c", command)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["code_gen: cannot write to standard output: No space left on device"]


# --- data sets that change --------------------------------------------------------------------------------------------


def add_image(path: Path) -> None:
    with lmdb.open(str(path), map_size=1 << 26, lock=False) as database, database.begin(write=True) as transaction:
        transaction.put(b"zzz", b"")


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_a_data_set_that_changes_while_it_is_read(tmp_path: Path, in_memory: int) -> None:
    lmdb_images.write(tmp_path, np.zeros((5, 1, 2, 2), np.uint8), range(5))
    seen = []

    def crop(image: np.ndarray) -> np.ndarray:
        seen.append(image)
        if len(seen) == 3:
            add_image(tmp_path)
        return image

    with pytest.raises(UserError, match="was changed while it was read"):
        lmdb_images.read(tmp_path, crop=crop, in_memory=in_memory)[0][:]
    assert len(seen) >= 3


def test_a_data_set_that_changes_during_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was read is reported, and that it has changed since."""
    arguments, search = tiny.write(tmp_path), quantize.find_formats

    def change_and_search(*arguments: Any) -> Any:
        add_image(tmp_path / "data_lmdb")
        return search(*arguments)

    monkeypatch.setattr(quantize, "find_formats", change_and_search)
    assert nn_quantizer.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "(100 images," in out
    assert err.count("\n") == 1 and "data_lmdb' was changed during the run: the accuracies are those of the" in err


def test_hashes_are_of_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of what is there after the search."""
    write_mean(tmp_path / "mean", np.full(tiny.IMAGE, 120, np.float32))
    arguments, search = [*tiny.write(tmp_path), "--mean", str(tmp_path / "mean")], quantize.find_formats
    read = {"model": tmp_path / "net.prototxt", "weights": tmp_path / "net.caffemodel.h5", "mean": tmp_path / "mean"}
    expected = {what: files.sha256(path) for what, path in read.items()}

    def replace_and_search(*arguments: Any) -> Any:
        for path in read.values():
            path.write_bytes(b"another")
        return search(*arguments)

    monkeypatch.setattr(quantize, "find_formats", replace_and_search)
    assert nn_quantizer.main(arguments) == 0
    network = record.load(tmp_path / "net.pkl").network
    assert network
    assert [*network.sources] == ["model", "weights", "quantized weights", "mean"]
    expected["quantized weights"] = files.sha256(tmp_path / "quantized_net.caffemodel")
    assert {what: source.sha256 for what, source in network.sources.items()} == expected


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert files.read_hashed(path, Path.read_bytes) == (b"one", files.sha256(path))
    with pytest.raises(UserError, match="a' was changed while it was read"):
        files.read_hashed(path, lambda path: path.write_bytes(b"other"))
    with pytest.raises(UserError, match=r"cannot read '.*a': No such file"):
        files.read_hashed(path, Path.unlink)


def test_a_search_over_images_that_stay_in_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gives the same pickle as one in memory that keeps layers' outputs, with held-out images, too."""
    arguments = [*tiny.write(tmp_path), "--crop", "6", "--holdout", "0.5"]
    pickles = []
    for shares in (4, 1 << 40):
        monkeypatch.setattr(engine, "MEMORY_SHARES", shares)
        assert nn_quantizer.main(arguments) == 0
        pickles.append((tmp_path / "net.pkl").read_bytes())
    assert pickles[0] == pickles[1]
    assert capsys.readouterr().err == ""


def test_images_that_stay_in_their_file(tmp_path: Path) -> None:
    """They are the same as in memory, cropped and picked, and are declined once the file has changed."""
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 9, 9), dtype=np.uint8)
    large = np.random.default_rng(0).integers(0, 256, (7, 3, 50, 50), dtype=np.uint8)
    for name, all_ in (("small", images), ("large", large)):
        lmdb_images.write(tmp_path / name, all_, range(len(all_)))
        stored, labels = lmdb_images.read(tmp_path / name, crop=lambda image: image[:, 1:4, 2:5], in_memory=1)
        assert isinstance(stored, StoredImages)
        cropped = all_[:, :, 1:4, 2:5]
        assert (stored.shape, len(stored), labels.tolist()) == (cropped.shape, len(all_), [*range(len(all_))])
        for which in (slice(None), slice(3, 6), np.array([5, 0, 5])):
            np.testing.assert_array_equal(stored[which], cropped[which])
            if isinstance(which, np.ndarray):
                np.testing.assert_array_equal(stored.pick(which)[:], cropped[which])
        parts = [slice(i, i + 3) for i in range(0, len(all_), 3)]
        with ThreadPoolExecutor(8) as pool:
            np.testing.assert_array_equal(np.concatenate([*pool.map(stored.__getitem__, parts)]), cropped)
        add_image(tmp_path / name)
        with pytest.raises(UserError, match="was changed while it was read"):
            stored[:1]


@pytest.mark.parametrize("header", ["weights.h", "parameter.h", "network.h", "test_images.h"])
def test_code_of_two_runs_does_not_compile(tmp_path: Path, header: str) -> None:
    """What a run leaves that was killed between two replacements, in a folder with the code of another network."""
    network, folders = small.quantized(tmp_path), []
    for run_ in ("1", "2"):
        network = replace(network, sources={"model": SourceFile("net.prototxt", run_ * 64)})
        folders.append(generate(small.save(network, tmp_path / run_), tmp_path / f"code{run_}", "--target", "host"))
    command = [tool("g++"), "-fsyntax-only", "-DARM_MATH_DSP", "-Iportable", "main.cpp"]
    sound = run(*command, cwd=folders[0])
    assert sound.returncode == 0, sound.stderr
    shutil.copy(folders[1] / header, folders[0] / header)
    assert "different runs of code_gen.py" in run(*command, cwd=folders[0]).stderr
