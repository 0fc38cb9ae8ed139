"""What a training step holds in memory at most, counted on a step that computes nothing.

A network on the device "meta" makes tensors of the right shapes and types without their numbers. So a whole step, its
loss and its backward pass included, is run on it, and every piece of memory is counted when it is made and when it is
let go, as the allocator of a GPU does. What such a step does not show is added: the optimizer's means, and what the
kernels of the scan need for themselves.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from nnunet_logvmamba.ops.scan.library import selective_scan_backward_op, selective_scan_op

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

GIB = 2**30
ERROR = 0.15
"""Share by which an estimate may be too low."""
RESERVED = GIB
"""Bytes of a card that no tensor gets: CUDA's context, its libraries, and what is missing to the size it is sold by."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step.

    Attributes:
        weights: Parameters and buffers.
        optimizer: Its running means.
        kept: What forward pass and loss keep for the backward pass, all but weights.
        tokens: What the largest scan reads: unfolded local tokens, global tokens, and what is projected from both.
        workspace: The most that a scan needs for itself while it runs.
        peak: The most that is held at any time, gradients and what is computed again included.
    """

    weights: int
    optimizer: int
    kept: int
    tokens: int
    workspace: int
    peak: int

    @property
    def passing(self) -> int:
        """What is held at the peak beside weights, means and ``kept``: gradients, and what is computed again."""
        return max(0, self.peak - self.weights - self.optimizer - self.kept)


def budget(gpu_memory_gib: float) -> int:
    """Bytes that a step may be estimated at, so that it fits a card of this size."""
    return int((gpu_memory_gib * GIB - RESERVED) / (1 + ERROR))


def card_for(estimated: int) -> float:
    """GiB of the card that a step of so many estimated bytes fits; the inverse of :func:`budget`."""
    return (estimated * (1 + ERROR) + RESERVED) / GIB


# --- Trainings of nnU-Net ---------------------------------------------------------------------------------------------


def estimate(
    build: Callable[[ConfigurationManager, int, int, bool], nn.Module],
    configuration: ConfigurationManager,
    labels: LabelManager,
    channels: int,
    *,
    copies: int,
    batch_size: int | None = None,
) -> StepMemory:
    """Count a training step of nnU-Net on a GPU: mixed precision, its own loss, without ``torch.compile``.

    Args:
        build: Gives the network of a configuration, input channels, output channels, and whether it has all outputs.
        configuration: Of the plans.
        labels: Of the data set.
        channels: Input channels.
        copies: Of every weight that the optimizer holds, as in ``recipes.Optimizer``.
        batch_size: Patches per step, instead of that of the configuration.

    Raises:
        ValueError: If the network cannot be built or takes no such patch.
    """
    with torch.device("meta"):
        network = build(configuration, channels, labels.num_segmentation_heads, True)
    patches = (batch_size or configuration.batch_size, channels, *configuration.patch_size)
    return count_step(network, patches, _loss(configuration, labels), copies=copies)


def _loss(configuration: ConfigurationManager, labels: LabelManager) -> Callable[[Any], Tensor]:
    """nnU-Net's loss against targets without values; an ignored label, which it would look for, costs hardly more."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    def target(output: Tensor) -> Tensor:
        channels = output.shape[1] if labels.has_regions else 1
        return torch.empty(output.shape[0], channels, *output.shape[2:], dtype=torch.int16, device=output.device)

    def loss(outputs: Any) -> Tensor:
        scales = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        several = len(scales) > 1
        trainer: Any = SimpleNamespace(
            label_manager=SimpleNamespace(has_regions=labels.has_regions, ignore_label=None),
            configuration_manager=SimpleNamespace(batch_dice=configuration.configuration.get("batch_dice", True)),
            is_ddp=False,
            enable_deep_supervision=several,
            _do_i_compile=lambda: False,
            _get_deep_supervision_scales=lambda: scales,  # of which it wants the number
        )
        targets = list(map(target, scales))
        of_nnunet = nnUNetTrainer._build_loss(trainer)
        return of_nnunet(scales, targets) if several else of_nnunet(scales[0], targets[0])

    return loss


# --- Counting ---------------------------------------------------------------------------------------------------------


def count_step(
    network: nn.Module,
    patches: Sequence[int],
    loss: Callable[[Any], Tensor],
    *,
    copies: int,
    half: torch.dtype | None = torch.float16,
    in_float: frozenset[str] | None = None,
) -> StepMemory:
    """Count a training step.

    Args:
        network: On the device "meta", with the outputs that it trains with.
        patches: Shape of a batch, (batch, channels, *spatial).
        loss: Gives the loss of what the network gives, against targets of its own.
        copies: Of every weight that is trained: itself, its gradient, and the optimizer's means.
        half: Type of mixed precision; None for float32 throughout.
        in_float: Functions that mixed precision leaves in float32; None means those of a GPU.
    """
    network.train()
    own = [*network.parameters(), *network.buffers()]
    weights = sum(tensor.nbytes for tensor in own)
    trained = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    tracker = _Tracker(own)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in tracker.own:
            kept[storage._cdata] = storage  # held, so that no other piece gets its address
        return tensor

    autocast = None if half is None else _Autocast(half, IN_FLOAT if in_float is None else in_float)
    with tracker, autocast or nullcontext():
        x = torch.empty(tuple(patches), device="meta")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = loss(network(x))
        kept_bytes = sum(storage.nbytes() for storage in kept.values())
        kept.clear()
        if autocast is not None:
            autocast.forget()
        # Not value.backward(), inside which no mode of functions is on; what is computed again there needs it.
        torch.autograd.Variable._execution_engine.run_backward(
            (value,), (torch.ones_like(value),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
        network.zero_grad(set_to_none=True)
    means = (copies - 2) * trained
    updating = 3 * trained  # the gradients, and two lists of their size that torch makes while it changes all weights
    peak = weights + means + max(tracker.peak, updating)
    return StepMemory(weights, means, kept_bytes, tracker.tokens, tracker.workspace, peak)


class _Tracker(TorchDispatchMode):
    """Counts the bytes of all pieces of memory that operations make, as long as anybody holds them."""

    def __init__(self, own: Iterable[Tensor]):
        super().__init__()
        self.own = {tensor.untyped_storage()._cdata for tensor in own}
        self._held: dict[int, weakref.ref] = {}
        self.now = self.peak = self.tokens = self.workspace = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        output = function(*arguments, **(keywords or {}))
        for tensor in _tensors(output):
            self._note(tensor.untyped_storage())
        if function in (selective_scan_op, selective_scan_backward_op):
            backwards = function is selective_scan_backward_op
            read = arguments[2:] if backwards else arguments
            self.tokens = max(self.tokens, sum(tensor.nbytes for tensor in _tensors(read)))
            needed = scan_workspace(*read[:4], backwards=backwards)
            self.workspace = max(self.workspace, needed)
            self.peak = max(self.peak, self.now + needed)
        return output

    def _note(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self.own or address in self._held:
            return

        def gone(_: weakref.ref) -> None:
            self.now -= size
            del self._held[address]

        self._held[address] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _tensors(values: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def scan_workspace(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, *, backwards: bool) -> int:
    """Bytes that the kernels for GPUs hold beside arguments and results of a scan: see ``triton_launch``.

    Both weights of every step in float32, and a state for every chunk of four tiles, of which long sequences have
    fewer. Backwards three for every chunk, the state at the start of every tile with how far it has faded, and for
    every 64 channels the gradients of the weights.
    """
    (batch, rows, channels), (groups, states) = delta.shape, B.shape[2:]
    tiles, blocks = -(-rows // 8), -(-(channels // groups) // 64)
    packed = 4 * batch * groups * rows * 2 * states
    per_state = 4 * batch * channels * states
    chunks = -(-tiles // 4) * per_state
    if not backwards:
        return packed + chunks
    starts = tiles * (per_state + 4 * batch * channels)
    return packed + 3 * chunks + starts + 4 * blocks * batch * groups * 2 * states * rows


class _Autocast(TorchFunctionMode):
    """What autocast does, for tensors that lie nowhere, which torch's own passes over.

    A weight is cast once, and its cast is held until it is forgotten.
    """

    def __init__(self, half: torch.dtype, in_float: frozenset[str]):
        super().__init__()
        self._half, self._in_float = half, in_float
        self._casts: dict[tuple, Tensor] | None = {}

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        name = getattr(function, "__name__", "")
        if name in IN_HALF:
            arguments, keywords = tree_map_only(Tensor, self._to_half, (arguments, keywords))
        elif name in self._in_float:
            arguments, keywords = tree_map_only(Tensor, self._to_float, (arguments, keywords))
        return function(*arguments, **keywords)

    def forget(self) -> None:
        """Let go of all casts, and hold none from now on."""
        self._casts = None

    def _to_half(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return x
        if self._casts is None or not (x.is_leaf and x.requires_grad):
            return x.to(self._half)
        key = (x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride())
        if key not in self._casts:
            self._casts[key] = x.to(self._half)
        return self._casts[key]

    def _to_float(self, x: Tensor) -> Tensor:
        return x.float() if x.dtype == self._half else x


_HALF = """
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d prelu linear matmul __matmul__ mm bmm addmm
addbmm baddbmm einsum mv scaled_dot_product_attention
"""
IN_HALF = frozenset(_HALF.split())
"""Names of functions that run in half precision under autocast on a GPU."""

_FLOAT = """
layer_norm rms_norm group_norm softmax log_softmax cross_entropy nll_loss binary_cross_entropy_with_logits mse_loss
l1_loss smooth_l1_loss kl_div interpolate softplus exp expm1 log log2 log10 log1p pow __pow__ rsqrt reciprocal sum prod
norm cumsum cumprod logsumexp cosine_similarity dist cdist
"""
IN_FLOAT = frozenset(_FLOAT.split())
"""Names of those that run in float32."""
