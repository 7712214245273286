# SPDX-License-Identifier: Apache-2.0
"""Networks that are quantized once for all tests, and how many damaged files are tried."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import nn_quantizer
from caffe_to_cmsis_nn.emit import render
from caffe_to_cmsis_nn.pipeline.job import Job, prepare
from caffe_to_cmsis_nn.report import page
from tests import tiny
from tests.support import FULL_SIZE, MODELS, once, shared

# HYPOTHESIS_PROFILE=long tries many more; --hypothesis-show-statistics says how they ended. Hypothesis's own deadline
# counts the time that other processes take.
for profile, examples in (("ci", 100), ("long", 20000)):
    settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        derandomize=profile == "ci",
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
patches = pytest.MonkeyPatch()  # for the whole run
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew from what is generated now")
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow, and no others")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """With -n, a process that has nothing left takes tests of another one. No template is compiled twice."""
    for module in (render, page):
        patches.setattr(module, "templates", functools.cache(module.templates))
    if config.getoption("dist", "no") == "load":
        config.option.dist = "worksteal"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """With -n auto, a process more than there are cores: some tests wait for others' processes."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run when they are asked for; FULL_SIZE=1 has all tests try as much as they can."""
    slow = bool(config.getoption("--slow"))
    left_out = [item for item in items if bool(item.get_closest_marker("slow")) != slow]
    if not (FULL_SIZE and not slow):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compilers of C look into ccache first, where it is installed; the C++ programs are hardly ever the same."""
    ccache, folder = shutil.which("ccache"), tmp_path_factory.mktemp("compilers")
    for name in ("cc", "gcc", "arm-none-eabi-gcc"):
        if ccache and shutil.which(name):
            (folder / name).symlink_to(ccache)
    patches.setenv("PATH", str(folder), prepend=os.pathsep)


def _quantize_lenet(folder: Path) -> None:
    (weights,) = MODELS.glob("lenet_iter_*.caffemodel.h5")
    shutil.copy(weights, folder)
    arguments = ["--model", str(MODELS / "lenet_train_test.prototxt"), "--weights", str(folder / weights.name)]
    with open(folder / "printed.txt", "w") as printed, contextlib.redirect_stdout(printed):
        assert nn_quantizer.main([*arguments, "--save", str(folder / "lenet.pkl")]) == 0


@pytest.fixture(scope="session")
def lenet_pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our LeNet, quantized over all test images; beside it, in printed.txt, what was printed."""
    return once(tmp_path_factory, "lenet", _quantize_lenet) / "lenet.pkl"


@pytest.fixture(scope="session")
def tiny_pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of a few hundred weights."""
    return tiny.quantize(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def lenet_job(tmp_path: Path) -> Job:
    """What is to be done for our LeNet and all test images."""
    (weights,) = MODELS.glob("lenet_iter_*.caffemodel.h5")
    arguments = ["--model", str(MODELS / "lenet_train_test.prototxt"), "--weights", str(weights)]
    return prepare(nn_quantizer.parse_arguments([*arguments, "--save", str(tmp_path / "lenet.pkl")]))


@pytest.fixture(scope="session")
def arm_m4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A writable copy of Arm's network."""
    folder = tmp_path_factory.mktemp("arm_m4") / "m4"
    shutil.copytree(shared("data", "arm_m4"), folder, copy_function=shutil.copyfile)
    return folder


def _quantize_arm_m4(folder: Path) -> None:
    shutil.copytree(shared("data", "arm_m4"), folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    arguments = ["--model", folder / "cifar10_m4_train_test.prototxt", "--save", folder / "ours.pkl"]
    arguments += ["--weights", folder / "cifar10_m4_iter_70000.caffemodel.h5"]
    arguments += ["--iterations", "10" if FULL_SIZE else "3"]
    assert nn_quantizer.main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="session")
def arm_m4_pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arm's network, quantized over the first test images."""
    return once(tmp_path_factory, "arm_m4", _quantize_arm_m4) / "ours.pkl"
