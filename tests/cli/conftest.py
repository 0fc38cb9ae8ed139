"""What tests of several commands begin with."""

from __future__ import annotations

import os

import pytest
import small_dataset
from commands import NnunetFolders


@pytest.fixture(autouse=True)
def _without_interpreter(monkeypatch):
    """As for a user; the interpreter of Triton is there for tests of kernels, and the doctor would try it."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def folders(nnunet_folders, monkeypatch) -> NnunetFolders:
    """A data set of balls in ``nnUNet_raw``, and nothing else."""
    monkeypatch.delenv("nnUNet_n_proc_DA")
    if hasattr(os, "sched_getaffinity"):  # starting processes takes longer than what they would do here
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    small_dataset.write_raw(nnunet_folders.raw)
    return nnunet_folders
