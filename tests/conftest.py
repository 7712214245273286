# SPDX-License-Identifier: Apache-2.0
"""Networks that are quantized once for all tests, and how many damaged files are tried."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import nn_quantizer
from q7.pipeline.job import Job, prepare
from tests.support import MODELS, shared

# HYPOTHESIS_PROFILE=long tries many more; --hypothesis-show-statistics says how they ended. Hypothesis's own deadline
# counts the time that other processes take.
for profile, examples in (("ci", 200), ("long", 20000)):
    settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        derandomize=profile == "ci",
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew from what is generated now")


@pytest.fixture(scope="session")
def lenet_pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our LeNet, quantized over all test images."""
    folder = tmp_path_factory.mktemp("lenet")
    (weights,) = MODELS.glob("lenet_iter_*.caffemodel.h5")
    shutil.copy(weights, folder)
    arguments = ["--model", str(MODELS / "lenet_train_test.prototxt"), "--weights", str(folder / weights.name)]
    assert nn_quantizer.main([*arguments, "--save", str(folder / "lenet.pkl")]) == 0
    return folder / "lenet.pkl"


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


@pytest.fixture(scope="session")
def arm_m4_pickle(arm_m4: Path) -> Path:
    """Arm's network, quantized over all test images with the original's procedure."""
    arguments = ["--model", arm_m4 / "cifar10_m4_train_test.prototxt", "--save", arm_m4 / "ours.pkl"]
    arguments += ["--weights", arm_m4 / "cifar10_m4_iter_70000.caffemodel.h5", "--objective", "caffe"]
    assert nn_quantizer.main([str(argument) for argument in arguments]) == 0
    return arm_m4 / "ours.pkl"
