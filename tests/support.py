# SPDX-License-Identifier: Apache-2.0
"""What several tests need: where the data is, tools that may be missing, and prototxts to build from."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import pytest

from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.data import lmdb_images

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
MODELS = ROOT / "models"
FULL_SIZE = bool(os.environ.get("FULL_SIZE"))  # tests try as much as they can, and not what is likely to find something
T = TypeVar("T")


def run_through(steps: Generator[Any, None, T]) -> tuple[list[Any], T]:
    """What a generator yields, and what it returns."""
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as stop:
            return seen, stop.value


def missing(reason: str) -> NoReturn:
    """Skips the test, or fails it where REQUIRE_TOOLS says that nothing may be missing."""
    if os.environ.get("REQUIRE_TOOLS"):
        pytest.fail(f"REQUIRE_TOOLS is set: {reason}")
    pytest.skip(reason)


def shared(*parts: str) -> Path:
    """A file or folder of the development data."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        missing(f"the development data '{'/'.join(parts)}' is not here")
    return path


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process to need it fills for all processes of the run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "whole").touch()
    return folder


def tool(*names: str) -> str:
    """The first of these programs that is installed."""
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    missing(f"{' or '.join(names)} is not installed")


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, and gives its output as text."""
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def write_dataset(folder: Path, shape: tuple[int, int, int], count: int, classes: int, seed: int = 0) -> None:
    """An LMDB `data_lmdb` of random CHW images with random labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    lmdb_images.write(folder / "data_lmdb", images, rng.integers(0, classes, count))


def write_leveldb(folder: Path, images: np.ndarray, labels: Sequence[int] | np.ndarray, table: int | None) -> None:
    """A LevelDB of CHW images, or of float values, whose first so many are in a table and the others in a log."""
    import plyvel

    with plyvel.DB(str(folder), create_if_missing=True) as database:
        for i, (image, label) in enumerate(zip(images, labels)):
            channels, height, width = image.shape
            datum = pb.Datum(channels=channels, height=height, width=width, label=int(label))
            if image.dtype == np.uint8:
                datum.data = image.tobytes()
            else:
                datum.float_data.extend(image.ravel().tolist())
            database.put(b"%08d" % i, datum.SerializeToString())
            if i + 1 == table:
                database.compact_range()


def prototxt(folder: Path, layers: str, bottom: str, transform: str = "", batch: int = 10) -> Path:
    """Writes a network between a data layer on `data_lmdb` and an accuracy layer on the blob `bottom`."""
    path = folder / "net.prototxt"
    path.write_text(
        f"""name: "net"
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TEST }}
  transform_param {{ {transform} }}
  data_param {{ source: "data_lmdb" batch_size: {batch} backend: LMDB }} }}
{layers}
layer {{ name: "accuracy" type: "Accuracy" bottom: "{bottom}" bottom: "label" top: "accuracy"
  include {{ phase: TEST }} }}
"""
    )
    return path
