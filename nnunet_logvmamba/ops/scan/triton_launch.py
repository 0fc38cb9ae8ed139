"""Launches of the GPU scan: tensors to pointers and strides, sequences to chunks, sums over chunks to gradients."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from nnunet_logvmamba.cores import usable_cores
from nnunet_logvmamba.ops.backends import compute_dtype, triton_cache_folder

from . import triton_kernels

READS_ROWS = True


class Tile(NamedTuple):
    """How a kernel is cut: steps and states that a thread keeps in registers, channels of a program (32 are one for
    each thread), and programs that a multiprocessor has registers for, because the compiler is told to do with as many.
    """

    steps: int
    states: int
    channels: int
    programs: int

    @property
    def registers(self) -> int:
        """Most registers of a thread; each quarter of a multiprocessor has 16,384, and a program is a warp."""
        return min(255, 16384 // (32 * -(-self.programs // 4)))


# By the most channels of a group for which it is meant. Two channels of a thread share the loads of B and C, and
# backward the sums over channels. With more than one state the compiler moves values between threads.
FORWARD_TILES = ((32, Tile(16, 1, 32, 16)), (None, Tile(8, 1, 64, 16)))
BACKWARD_TILES = ((None, Tile(8, 1, 64, 8)),)
# The interpreter takes as long for an operation on one number as on a thousand.
INTERPRETED_STATES: int | None = 16
# A chunk is at least so long that carrying its state costs little beside scanning it.
TILES_PER_CHUNK = 4
# Of the kernels that carry, which take element by element.
CARRY_BLOCK = 32
# One warp each; nothing to overlap by copies ahead; and a multiplication and an addition round once.
OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
_ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}


def forward(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus):
    """Output (batch, length, channels) and last state (batch, channels, state)."""
    p = _Problem(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, FORWARD_TILES)
    y, states = p.plan_forward()
    p.run()
    return y, _copy(states[-1].transpose(1, 2))


def backward(grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus):
    """Gradients of all tensors but ``order``, in their order; None where one is absent."""
    p = _Problem(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, BACKWARD_TILES)
    gradients = p.plan_backward(grad_y, grad_last_state.to(p.dtype).transpose(1, 2).contiguous())
    p.run()
    grad_u, grad_context, grad_delta, grad_A, grad_weights, grad_D, grad_bias, grad_first = gradients
    grad_B, grad_C = p.unpacked(grad_weights, 0, B.dtype), p.unpacked(grad_weights, 1, C.dtype)
    return (
        grad_u,
        grad_delta,
        grad_A.sum((0, 1)).T,
        grad_B,
        grad_C,
        None if D is None else grad_D.sum((0, 1)),
        None if delta_bias is None else grad_bias.sum((0, 1)),
        None if initial_state is None else _copy(grad_first.transpose(1, 2)),
        grad_context,
    )


def compile_ahead(scans: Iterable[tuple], device: torch.device, *, backwards: bool = True) -> list:
    """Compile whatever these scans launch, all at once.

    Args:
        scans: Arguments of ``forward``; only shapes, strides and types matter, so the tensors may be on device "meta".
        device: The GPU that they will run on.
        backwards: Whether their gradients will be asked for.

    Returns:
        What was compiled or loaded, each kernel once.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    launches: list[_Launch] = []
    for arguments in scans:
        p = _Problem(*arguments, tiles_by_channels=FORWARD_TILES, device=device)  # type: ignore[misc]  # of eleven
        p.plan_forward()
        launches += p.launches
        if backwards:
            p = _Problem(*arguments, tiles_by_channels=BACKWARD_TILES, device=device)  # type: ignore[misc]  # of eleven
            p.plan_backward(arguments[0], p.first_state)
            launches += p.launches
    return _compile(launches, device)


class _Launch(NamedTuple):
    """A kernel with its arguments, and how often it runs side by side."""

    kernel: triton.JITFunction
    programs: int
    arguments: tuple
    options: dict

    @property
    def kind(self) -> tuple:
        """What the machine code depends on: types, what is present, and what is constant in the kernel."""
        types = (x.dtype if isinstance(x, Tensor) else x is None for x in self.arguments)
        return (self.kernel, *types, *(value for name, value in self.options.items() if name.isupper()))


# Per device, kinds of launches that this process has compiled or loaded.
_compiled: set[tuple[torch.device, tuple]] = set()
# Seconds after which somebody who waits is told what for: kernels that were compiled before are loaded in less.
PATIENCE_S = 1.0


def _compile(launches: Sequence[_Launch], device: torch.device) -> list:
    """Compile or load what is new, all at once, longest first: the compiler lets other threads run. It is kept where
    ``logvmamba doctor`` says, whatever folder torch.compile has made Triton's.
    """
    new = {launch.kind: launch for launch in launches if (device, launch.kind) not in _compiled}
    if not new:
        return []

    def compiled(launch: _Launch):
        with _on(device):
            made = launch.kernel.warmup(*launch.arguments, grid=(launch.programs,), **launch.options)
            if device.type == "cuda":
                made.run  # noqa: B018 - loads it and builds its launcher, which is a program in C
            return made

    folder = str(triton_cache_folder())
    notice = threading.Timer(
        PATIENCE_S,
        lambda: print(f"compiling kernels of the selective scan, once; they are kept in {folder}", file=sys.stderr),
    )
    notice.daemon = True
    notice.start()
    try:
        with _kept_in(folder), ThreadPoolExecutor(min(len(new), usable_cores())) as pool:
            made = list(pool.map(compiled, sorted(new.values(), key=lambda launch: -len(launch.kernel.src))))
        _compiled.update((device, kind) for kind in new)
        return made
    finally:
        notice.cancel()


_environment = threading.Lock()


@contextlib.contextmanager
def _kept_in(folder: str) -> Iterator[None]:
    """Let Triton keep kernels in a folder. It is named in the environment, which all threads share: one at a time."""
    with _environment:
        before = os.environ.get("TRITON_CACHE_DIR")
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("TRITON_CACHE_DIR", None)
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before


class _Problem:
    """The arguments of a scan as the kernels want them, how the sequence is cut, and what is to be launched.

    ``device`` is that of the tensors, or the one that kernels are compiled for where these have none.
    """

    def __init__(
        self, u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, tiles_by_channels,
        device=None,
    ):  # fmt: skip
        self.dtype = compute_dtype(u, delta, A, B, C, D, delta_bias, initial_state, context)
        self.device, self.softplus = u.device, delta_softplus
        self.launched_on = device or u.device
        self.launches: list[_Launch] = []
        self.batch, self.length, self.channels = u.shape
        self.rows, (self.groups, self.states) = delta.shape[1], B.shape[2:]
        self.nothing = self.batch * self.channels == 0
        if context is not None and context.dtype != u.dtype:
            u, context = u.to(self.dtype), context.to(self.dtype)
        self.u, self.context, self.delta = u, context, delta
        self.inputs = (*_rows(u), *_rows(None if context is None or context.shape[1] == 0 else context), *_rows(delta))
        extents = (_extent(*rows) for rows in (self.inputs[:2], self.inputs[3:5], self.inputs[6:8]))
        self.wide = max(self.rows * self.channels, *extents) >= 2**31
        self.D, self.bias = (None if x is None else _aligned(x.to(self.dtype)) for x in (D, delta_bias))
        self.order = order
        shape = (self.batch, self.states, self.channels)
        if initial_state is None:
            self.first_state = torch.zeros(shape, dtype=self.dtype, device=self.device)
        else:
            self.first_state = initial_state.to(self.dtype).transpose(1, 2).contiguous()
        per_group = self.channels // self.groups
        self.tile = next(tile for most, tile in tiles_by_channels if most is None or per_group <= most)
        if self.launched_on.type == "cpu" and INTERPRETED_STATES is not None:
            self.tile = self.tile._replace(states=INTERPRETED_STATES)
        self.decays = self.with_slack(self.states, self.channels).copy_((A.to(self.dtype) * math.log2(math.e)).T)
        self.blocks = -(-per_group // self.tile.channels)
        self.tiles, self.chunks = self._cut()
        self.padded = self.chunks * self.tiles * self.tile.steps
        self.width = max(self.tile.states, triton.next_power_of_2(self.states))
        self.weights = self._packed(B, C)
        if order is not None:  # for steps beyond the end a row without output, if there is one
            order = F.pad(order, (0, self.padded - self.rows), value=self.rows - 1).int()
        self.row_of_step = order

    def _cut(self) -> tuple[int, int]:
        """Tiles of a chunk, and chunks: as many as fill the device once, for a few more would take as long again."""
        tiles = -(-self.rows // self.tile.steps)
        side_by_side = max(1, self.batch * self.groups * self.blocks)
        most = max(1, self.tile.programs * _processors(self.launched_on) // side_by_side)
        per_chunk = min(tiles, max(TILES_PER_CHUNK, -(-tiles // most)))
        return per_chunk, -(-tiles // per_chunk)

    def _packed(self, B: Tensor, C: Tensor) -> Tensor:
        """Both weights of every step, (batch, group, tile, 2, width, step), in the order of the sequence."""
        shape = (self.batch, self.groups, self.padded // self.tile.steps, 2, self.width, self.tile.steps)
        packed = torch.zeros(shape, dtype=self.dtype, device=self.device)
        by_step = packed.permute(3, 0, 2, 5, 1, 4)  # 2, batch, tile, step, group, width
        for i, weights in enumerate((B, C)):
            if self.order is not None:
                weights = weights.index_select(1, self.order)
            whole = self.rows // self.tile.steps
            tiled, rest = weights.split((whole * self.tile.steps, self.rows - whole * self.tile.steps), 1)
            by_step[i, :, :whole, ..., : self.states] = tiled.unflatten(1, (whole, self.tile.steps))
            if rest.shape[1]:
                by_step[i, :, whole, : rest.shape[1], :, : self.states] = rest
        return packed

    def unpacked(self, strips: Tensor, which: int, dtype: torch.dtype) -> Tensor:
        """Gradient of B (0) or C (1), (batch, rows, group, state), from (block, batch, group, 2, state, padded)."""
        in_sequence = strips[:, :, :, which].sum(0)[..., : self.rows].permute(0, 3, 1, 2)
        gradient = torch.empty(in_sequence.shape, dtype=dtype, device=self.device)
        if self.order is None:
            return gradient.copy_(in_sequence)
        return gradient.index_copy_(1, self.order, in_sequence.to(dtype))

    def plan_forward(self) -> tuple[Tensor, Tensor]:
        """Plan the launches for the output; it and the states of the chunks, (chunk, batch, state, channel)."""
        y, states = self.result_like(self.u), self.per_chunk()
        if self.nothing:
            return y, states
        if self.chunks == 1:
            states[0] = self.first_state
        else:
            spans = self.spans()
            self.plan(
                triton_kernels.sum_chunks,
                self.chunks - 1,
                *(*self.inputs, self.bias, self.decays, self.weights, self.row_of_step, states, spans),
            )
            self.plan_carry(states, spans, self.first_state, reverse=False)
        self.plan(
            triton_kernels.finish_chunks,
            self.chunks,
            *(*self.inputs, self.bias, self.decays, self.weights, self.D, self.row_of_step, states, y),
        )
        return y, states

    def plan_backward(self, grad_y: Tensor, grad_leaving: Tensor) -> tuple[Tensor, ...]:
        """Plan the launches for the gradients, all but those of u and delta as sums over chunks or blocks: of u,
        context, delta, A, weights, D, the bias and, (batch, state, channel), what enters the first chunk.
        """

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=self.dtype, device=self.device)

        tiles = self.chunks * self.tiles
        starts, prefixes = empty(tiles, self.batch, self.states, self.channels), empty(tiles, self.batch, self.channels)
        entering, leaving, spans = self.per_chunk(), self.per_chunk(), self.spans()
        grad_u, grad_delta = self.result_like(self.u), self.result_like(self.delta)
        grad_context = None if self.context is None else self.result_like(self.context)
        grad_A, grad_D, grad_bias = self.per_chunk(), self.spans(), self.spans()
        grad_weights = empty(self.blocks, self.batch, self.groups, 2, self.states, self.padded)
        if self.nothing:
            leaving[0] = grad_leaving
            for sums in (grad_A, grad_D, grad_bias, grad_weights):
                sums.zero_()
        else:
            upstream = _rows(grad_y)
            self.wide = self.wide or _extent(*upstream[:2]) >= 2**31
            self.plan(
                triton_kernels.sum_chunks_backward,
                self.chunks,
                *(*upstream, *self.inputs, self.bias, self.decays, self.weights, self.row_of_step),
                *(starts, prefixes, entering, leaving, spans),
            )
            self.plan_carry(entering, spans, self.first_state, reverse=False)
            self.plan_carry(leaving, spans, grad_leaving, reverse=True)
            self.plan(
                triton_kernels.finish_chunks_backward,
                self.chunks,
                *(*upstream, *self.inputs, self.bias, self.decays, self.weights, self.D, self.row_of_step),
                *(starts, prefixes, entering, leaving),
                *(grad_u, grad_context, grad_delta, grad_A, grad_weights, grad_D, grad_bias),
            )
        return grad_u, grad_context, grad_delta, grad_A, grad_weights, grad_D, grad_bias, leaving[0]

    def plan(self, kernel: triton.JITFunction, chunks: int, *tensors) -> None:
        """Plan a kernel with a program for every chunk, batch entry, group and block."""
        options = OPTIONS | {
            "batch": self.batch,
            "channels": self.channels,
            "groups": self.groups,
            "state_size": self.states,
            "length": self.length,
            "rows": self.rows,
            "tiles": self.tiles,
            "padded": self.padded,
            "STEPS": self.tile.steps,
            "STATES": self.tile.states,
            "WIDTH": self.width,
            "BLOCK": self.tile.channels,
            "SOFTPLUS": self.softplus,
            "WIDE": self.wide,
            "ACC": _ACCUMULATORS[self.dtype],
        }
        if torch.version.hip is None:
            options["maxnreg"] = self.tile.registers
        self.launches.append(_Launch(kernel, chunks * self.batch * self.groups * self.blocks, tensors, options))

    def plan_carry(self, states: Tensor, spans: Tensor, first: Tensor, *, reverse: bool) -> None:
        """Plan what turns the states that chunks yield into those that enter them."""
        programs = -(-first.numel() // CARRY_BLOCK)
        if programs == 0:  # no states
            return
        arguments = (states, spans, self.decays, first, self.batch, self.channels, self.states, self.chunks)
        options = OPTIONS | {"BLOCK": CARRY_BLOCK, "REVERSE": reverse}
        self.launches.append(_Launch(triton_kernels.carry, programs, arguments, options))

    def run(self) -> None:
        """Launch what is planned, after compiling what is new in it."""
        if self.device.type == "cuda":  # the interpreter compiles nothing
            _compile(self.launches, self.device)
        with _on(self.device):
            for launch in self.launches:
                launch.kernel[(launch.programs,)](*launch.arguments, **launch.options)
        self.launches.clear()
        del self.weights

    def result_like(self, x: Tensor) -> Tensor:
        """Memory for a result of that shape and dtype, contiguous. The interpreter cuts bfloat16 off; torch rounds."""
        dtype = self.dtype if x.device.type == "cpu" else x.dtype
        return torch.empty(x.shape, dtype=dtype, device=x.device)

    def per_chunk(self) -> Tensor:
        """Memory for a state per chunk, (chunk, batch, state, channel)."""
        return self.with_slack(self.chunks, self.batch, self.states, self.channels)

    def with_slack(self, *shape: int) -> Tensor:
        """Memory of a shape, behind which a program may read for channels that it has and the group has not."""
        size = math.prod(shape)
        return torch.empty(size + self.tile.channels, dtype=self.dtype, device=self.device)[:size].view(shape)

    def spans(self) -> Tensor:
        """Memory for a number per chunk and channel, (chunk, batch, channel)."""
        return torch.empty(self.chunks, self.batch, self.channels, dtype=self.dtype, device=self.device)


def _aligned(x: Tensor) -> Tensor:
    """The same numbers at an address for which nothing is compiled anew, copied if need be."""
    return x.contiguous() if x.data_ptr() % 16 == 0 else _copy(x)


def _copy(x: Tensor) -> Tensor:
    """The same numbers in memory of their own."""
    return x.clone(memory_format=torch.contiguous_format)


def _rows(x: Tensor | None) -> tuple[Tensor | None, int, int]:
    """The tensor, the stride of its rows and that of its batch."""
    if x is None:
        return None, 0, 0
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x, x.stride(1), x.stride(0)


def _extent(x: Tensor | None, row: int) -> int:
    """Elements from the first to the last of a batch entry."""
    return 0 if x is None else (x.shape[1] - 1) * row + x.shape[2]


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches go to the current device; make it that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a device; the interpreter is told one, and cuts like a GPU all the same."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
