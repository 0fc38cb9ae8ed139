"""What all tests of trainers share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Maps of 16 voxels are too small to share, and threads that wait for a busy core cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
