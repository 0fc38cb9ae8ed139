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
        (lambda content: b"", "is empty"),
        (lambda content: content[: len(content) // 2], "is cut off or damaged (2"),
        (lambda content: content[:-1], "is cut off or damaged"),
        (lambda content: content[:20], "is cut off or damaged (20 bytes)"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1", "is no zip, as torch.save writes"),
        (lambda content: bytes(len(content)), "is no zip, as torch.save writes"),
    ],
)
def test_what_is_no_whole_file_is_said(checkpoint, change, said):
    checkpoint.write_bytes(change(checkpoint.read_bytes()))
    assert damage_of(checkpoint).startswith(said)


def test_another_zip_is_no_checkpoint(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    assert damage_of(tmp_path / "a.npz") == "is a zip, but no checkpoint"


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        damage_of(tmp_path / "nowhere.pth")
