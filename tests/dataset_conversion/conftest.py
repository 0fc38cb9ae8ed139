"""Helpers for the converter tests: the checkout on the path, and commands run as a user runs them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))


@pytest.fixture
def nnunet_variables(tmp_path):
    """Environment variables of nnU-Net below the test's own folder; the folders do not exist yet."""
    return {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}


@pytest.fixture
def run_module():
    """Run ``python -m module arguments`` in the checkout with only the given nnU-Net variables set."""

    def run(module, *arguments, environment=None):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=CHECKOUT,
            env=clean | {"OMP_NUM_THREADS": "1"} | (environment or {}),
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def fingerprint():
    """Relative path to SHA-256 of every file below a folder."""

    def digest(folder):
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return digest


@pytest.fixture
def decathlon_hippocampus(shared):
    """The real hippocampus selection."""
    folder = shared / "data" / "hippocampus"
    if not folder.is_dir():
        pytest.skip(f"real data are not here: {folder}")
    return folder
