from pathlib import Path

import pytest
import torch
from scan_cases import BACKENDS


@pytest.fixture
def golden_dir(shared: Path) -> Path:
    """Folder of the golden files; the test is skipped where the shared data are absent."""
    return shared / "golden"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def poisoned_empty():
    """Fill what ``torch.empty`` and its relatives return with NaN, so that a forgotten store is loud."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def small_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the chunked backend cut even short sequences into several pieces of several lanes."""
    monkeypatch.setattr("nnunet_logvmamba.ops.scan.chunked.LANE_LENGTH", 4)
    monkeypatch.setattr("nnunet_logvmamba.ops.scan.chunked.WORKSPACE_ELEMENTS", 1000)
