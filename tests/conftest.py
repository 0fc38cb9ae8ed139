"""Folders, seeds and threads for all tests, and why some are skipped."""

from __future__ import annotations

import os
import random
from pathlib import Path

# Before numpy and torch are loaded. nnU-Net augments in the training process (0 workers), so that two cores suffice.
# Threads that wait sleep, since other processes of the tests want the cores.
for _name, _value in {
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "PASSIVE",
    "nnUNet_n_proc_DA": "0",
    "nnUNet_def_n_proc": "1",
    "MPLBACKEND": "Agg",
}.items():
    os.environ[_name] = _value
# No test reads or writes the user's data; `nnunet_folders` gives each its own.
for _name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.pop(_name, None)

import importlib.util  # noqa: E402

import commands  # noqa: E402
import hypothesis  # noqa: E402
import made_once  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import triton_interpreter  # noqa: E402

pytest_plugins = ["trained_projects"]
SHARED = Path(__file__).resolve().parents[1].parent / "shared"

# Where there is no GPU, Triton's kernels run in its interpreter. Triton looks at this when it is first imported, which
# is now, since the tests of commands take it away again.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")
        triton_interpreter.patch_language_once_per_launch()
torch.set_num_threads(2)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption("--golden", metavar="DIR", help="folder of golden files to compare with (in layers, networks)")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    if item.get_closest_marker("vendor") and importlib.util.find_spec("selective_scan_cuda") is None:
        pytest.skip("needs mamba-ssm with its kernel, which is not installed")


@pytest.fixture(scope="session", autouse=True)
def _shared_by_processes(tmp_path_factory):
    made_once.begin(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state that nnU-Net draws from
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and golden files beside the checkout; without it the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data, and there is no folder {SHARED}")
    return SHARED


@pytest.fixture
def nnunet_folders(tmp_path, monkeypatch) -> commands.NnunetFolders:
    """Empty folders for nnU-Net that this test has to itself, set in the environment as well."""
    folders = commands.NnunetFolders.below(tmp_path / "nnunet")
    for name, value in folders.environment.items():
        monkeypatch.setenv(name, value)
    return folders


@pytest.fixture(scope="session")
def run_command():
    """``commands.run_command``, which runs a console script as a user does."""
    return commands.run_command
