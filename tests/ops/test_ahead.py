"""Which scans a network will run is known before it runs."""

import os
import tempfile
from types import NoneType

import torch

from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.ops import ahead, backends

PLAN = {
    "input_channels": 1,
    "num_classes": 2,
    "n_stages": 3,
    "features_per_stage": [8, 16, 16],
    "conv_op": torch.nn.Conv3d,
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "conv_bias": True,
    "norm_op": torch.nn.BatchNorm3d,
    "norm_op_kwargs": {},
    "nonlin": torch.nn.LeakyReLU,
}


def test_the_scans_of_a_network_are_found_without_running_it():
    network = catalogue.DEFAULT.load()(**PLAN, deep_supervision=True)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    random = torch.get_rng_state()
    scans = ahead.scans_of(network, (2, 1, 16, 16, 16), torch.device("cpu"))
    assert len(scans) == sum(name.endswith("A_log") for name, _ in network.named_parameters())
    for u, delta, A, *_ in scans:
        assert (u.device.type, u.dtype, delta.dtype, A.dtype) == ("meta", *[torch.float16] * 2, torch.float32)
    # Plain tensors, which tell their address without a warning under every torch.
    assert {type(x) for scan in scans for x in scan} == {torch.Tensor, NoneType, bool, str}
    assert {scan[0].shape[1] for scan in scans} == {8**3, 4**3}
    assert any(scan[8] is not None for scan in scans), "no stage has global tokens"
    # Running statistics of the norms and the generator of random numbers, too, are what they were.
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.isfinite(network(torch.zeros(2, 1, 16, 16, 16))[0]).all()


def test_nothing_is_compiled_ahead_for_a_device_without_kernels():
    assert ahead.compile_ahead(torch.nn.Conv3d(1, 1, 1), (1, 1, 4, 4, 4), torch.device("cpu")) == 0


def test_kernels_are_kept_for_a_while_where_the_home_cannot_be_written_to(monkeypatch, tmp_path):
    monkeypatch.setattr(backends, "_TRITON_CACHE_DIR", None)
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    assert backends.triton_cache_folder() == tmp_path / ".triton" / "cache"
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    backends._passing_folder.cache_clear()
    folder = backends.triton_cache_folder()
    assert folder == tmp_path / f"triton_{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    # What is there and may be somebody else's is not run.
    folder.rmdir()
    folder.symlink_to(tmp_path)
    backends._passing_folder.cache_clear()
    assert backends.triton_cache_folder().parent == tmp_path
    assert backends.triton_cache_folder() != folder
    backends._passing_folder.cache_clear()
    monkeypatch.setattr(backends, "_TRITON_CACHE_DIR", str(tmp_path / "file"))
    assert backends.triton_cache_folder() == tmp_path / "file", "what the user names stays"


def test_kernels_are_kept_where_the_user_said_and_not_where_torch_compile_keeps_its_own(monkeypatch):
    folder = backends.triton_cache_folder()
    monkeypatch.setenv("TRITON_CACHE_DIR", "torchinductor")
    assert backends.triton_cache_folder() == folder
