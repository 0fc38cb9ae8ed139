"""The memory of a training step, estimated without computing anything, beside the bytes that a real step takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.ops.scan import triton_launch
from nnunet_logvmamba.plugin import memory
from nnunet_logvmamba.plugin.memory import IN_FLOAT, IN_HALF, StepMemory, count_step

MIB = 2**20
NETWORKS = {
    "ours": ("LoGVMambaUNet", {}),
    "ours with checkpointing": ("LoGVMambaUNet", {"checkpointing": True}),
    "no states": ("LoGVMambaUNet", {"family": "no_ssm"}),
    "peer": ("UMambaEnc", {}),
}
PATCHES = {
    3: ((16, 16, 16), (24, 16, 32), (32, 32, 32), (40, 48, 24), (48, 48, 48)),
    2: ((32, 32), (64, 64), (96, 128), (160, 112), (192, 192)),
}
WIDTHS = (16, 16, 32, 32)
# What autocast on a CPU leaves in float32: other functions than on a GPU.
IN_FLOAT_ON_A_CPU = frozenset({"cross_entropy", "nll_loss", "mse_loss", "max_pool3d"})


def build(name: str, patch: tuple[int, ...], device: str, widths: tuple[int, ...] = WIDTHS) -> nn.Module:
    """A network as a plan of nnU-Net's makes it."""
    network, knobs = NETWORKS[name]
    made, stages, dims = catalogue.row(network).load(), len(widths), len(patch)
    planned = {
        "n_stages": stages,
        "features_per_stage": list(widths),
        "conv_op": {2: nn.Conv2d, 3: nn.Conv3d}[dims],
        "kernel_sizes": [[3] * dims] * stages,
        "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims],
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
    with torch.device(device):
        return made(
            input_channels=2,
            num_classes=3,
            deep_supervision=made.deep_supervised,
            **made.from_plan(planned, list(patch)),
            **knobs,
        )


def loss(outputs: list[Tensor]) -> Tensor:
    """Cross-entropy and a soft overlap of all scales."""
    return sum(F.cross_entropy(each, each.argmax(1)) - each.softmax(1)[:, 1:].square().mean() for each in outputs)


def counted(network: nn.Module, patches: tuple[int, ...], half: bool) -> tuple[int, int]:
    """Bytes that a real step on the CPU keeps for its backward pass, and the most that it holds beside the weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    def step() -> None:
        x = torch.randn(patches)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = loss(network(x))
        value.backward()

    network.train()
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=half), hooks:
        value = loss(network(torch.randn(patches)))
    kept_bytes = sum(storage.nbytes() for storage in kept.values())
    kept.clear()
    del value
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return kept_bytes, peak


def estimated(name: str, patches: tuple[int, ...], half: bool) -> StepMemory:
    network = build(name, patches[2:], "meta")
    kind = torch.bfloat16 if half else None
    return count_step(network, patches, loss, copies=2, half=kind, in_float=IN_FLOAT_ON_A_CPU)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "mixed"])
@pytest.mark.parametrize("dims", PATCHES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [pytest.param(size, marks=[pytest.mark.slow] if size else []) for size in range(5)])
def test_the_estimate_is_within_15_percent_of_the_bytes_that_a_real_step_takes(name, dims, half, size):
    patch = PATCHES[dims][size]
    patches = (2, 2, *patch)
    found = estimated(name, patches, half)
    kept, peak = counted(build(name, patch, "cpu"), patches, half)
    assert found.kept == pytest.approx(kept, rel=0.15)
    if not (half and "checkpointing" in name):
        # There the peak is inside of convolutions' gradients, whose buffers in bfloat16 are the CPU's own.
        assert found.peak - found.weights - found.optimizer == pytest.approx(peak, rel=0.15)


def test_the_optimizers_means_come_on_top():
    network = build("ours", (16, 16, 16), "meta")
    trained = sum(parameter.numel() for parameter in network.parameters())
    shape = (2, 2, 16, 16, 16)
    sgd, adam = (count_step(network, shape, loss, copies=copies) for copies in (3, 4))
    assert (sgd.optimizer, adam.optimizer) == (4 * trained, 8 * trained)
    assert adam.peak - sgd.peak == 4 * trained
    assert adam.weights == 4 * trained
    assert sgd.passing == sgd.peak - sgd.weights - sgd.optimizer - sgd.kept


def test_checkpointing_and_half_precision_need_less_and_a_batch_in_proportion():
    shape = (2, 2, 32, 32, 32)

    def step(name: str = "ours", batch: int = 2, **options) -> StepMemory:
        return count_step(build(name, shape[2:], "meta"), (batch, *shape[1:]), loss, copies=4, **options)

    whole = step()
    assert step("ours with checkpointing").kept < 0.4 * whole.kept
    assert step("ours with checkpointing").peak < whole.peak
    assert whole.kept < 0.7 * step(half=None).kept
    assert step(batch=4).kept == pytest.approx(2 * whole.kept, rel=0.02)
    assert whole.tokens > 0
    assert whole.workspace > 0
    assert step("no states").workspace == 0


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("batch", "rows", "channels", "groups"), [(2, 4096, 54, 1), (1, 2310, 108, 3), (2, 640, 256, 1)]
)
def test_the_workspace_of_a_scan_is_what_its_kernels_on_a_gpu_ask_for(
    batch, rows, channels, groups, backwards, monkeypatch
):
    monkeypatch.setattr(triton_launch, "_processors", lambda device: 1000)  # as many chunks as there can be

    def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    u = delta = empty(batch, rows, channels)
    A, B = empty(channels, 16, dtype=torch.float32), empty(batch, rows, groups, 16)
    arguments = (u, delta, A, B, empty(*B.shape), None, None, None, None, None, True)
    tracker = memory._Tracker([u, A, B])
    with tracker:
        tiles = triton_launch.BACKWARD_TILES if backwards else triton_launch.FORWARD_TILES
        problem = triton_launch._Problem(*arguments, tiles_by_channels=tiles, device=torch.device("cpu"))
        results = problem.plan_backward(u, problem.first_state) if backwards else problem.plan_forward()
    asked = tracker.peak - sum(each.nbytes for each in (results[::2][:2] if backwards else results[:1]))
    found = memory.scan_workspace(u, delta, A, B, backwards=backwards)
    assert found == pytest.approx(asked, rel=0.3), (found, asked)


# Where torch has another name for what a function ends in, or several of its kind.
OPS = {
    "__matmul__": "matmul",
    "__pow__": "pow.Tensor_Scalar",
    "pow": "pow.Tensor_Scalar",
    "softmax": "softmax.int",
    "log_softmax": "log_softmax.int",
    "cross_entropy": "nll_loss",
    "interpolate": "upsample_trilinear3d",
    "norm": "norm.Scalar",
    "conv_transpose2d": "conv_transpose2d.input",
    "conv_transpose3d": "conv_transpose3d.input",
}


@pytest.mark.parametrize("name", sorted(IN_HALF | IN_FLOAT))
def test_torch_casts_the_same_functions_on_a_gpu(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{OPS.get(name, name)}", "AutocastCUDA")


@pytest.mark.parametrize("name", ["gelu", "silu", "leaky_relu", "instance_norm", "batch_norm", "avg_pool3d", "cat"])
def test_others_are_left_as_they_come(name):
    assert name not in IN_HALF | IN_FLOAT
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCUDA")


def test_a_weight_is_cast_once_until_casts_are_forgotten():
    convolution = nn.Conv2d(2, 2, 3, device="meta")
    x = torch.empty(1, 2, 8, 8, device="meta")
    with memory._Autocast(torch.float16, IN_FLOAT) as autocast:
        y = convolution(x)
        assert y.dtype == torch.float16
        convolution(y)
        assert len(autocast._casts) == 2  # the weight and the bias
        assert F.layer_norm(y, y.shape[1:]).dtype == F.softmax(y, 1).dtype == torch.float32
        assert F.leaky_relu(y).dtype == torch.float16
        autocast.forget()
        assert convolution(x).dtype == torch.float16


def test_a_card_and_its_budget_belong_together():
    assert memory.card_for(memory.budget(16)) == pytest.approx(16)
    assert memory.budget(16) * 1.15 + 2**30 == pytest.approx(16 * 2**30)
