"""Checksums of checkpoints, read without torch."""

import numpy as np
import pytest
import torch

from nnunet_logvmamba.plugin.checkpoint_damage import damage_of


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {"weight": torch.randn(100, 100)}, "current_epoch": 3}, path)
    return path


def test_a_whole_file_is_whole(checkpoint):
    assert damage_of(checkpoint) is None


def test_flipped_bytes_are_found_wherever_weights_lie(checkpoint):
    content = checkpoint.read_bytes()
    begin = content.index(torch.load(checkpoint)["network_weights"]["weight"].numpy().tobytes())
    for place in np.linspace(begin, begin + 39_990, 20, dtype=int):
        for number in (1, 10):
            flipped = bytearray(content)
            flipped[place : place + number] = bytes(255 - byte for byte in flipped[place : place + number])
            checkpoint.write_bytes(flipped)
            assert "the checksum of its part 'checkpoint_final/data/0' is wrong" in damage_of(checkpoint)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: b"", "it is empty"),
        (lambda content: content[: len(content) // 2], "its end is missing"),
        (lambda content: content[:-1], "its end is missing"),
        (lambda content: content[:20], "its end is missing"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1", "it does not begin as a file of PyTorch does"),
        (lambda content: bytes(len(content)), "it does not begin as a file of PyTorch does"),
    ],
)
def test_what_is_no_whole_file_is_said(checkpoint, change, said):
    checkpoint.write_bytes(change(checkpoint.read_bytes()))
    assert damage_of(checkpoint).startswith(said)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        damage_of(tmp_path / "nowhere.pth")
