"""Launches of the GPU scan: tensors to pointers and strides, sequences to chunks, sums over chunks to gradients."""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nnunet_logvmamba.ops.backends import compute_dtype

from . import triton_kernels
from .triton_kernels import Rows, Sizes

READS_ROWS = True


class Tile(NamedTuple):
    """How a kernel is cut: steps and states that a thread keeps in registers, channels of a program (32 are one for
    each thread), and programs for which the registers of a multiprocessor suffice.
    """

    steps: int
    states: int
    channels: int
    programs: int


# By the most channels of a group for which it is meant. Forward a thread can have two channels, which share the loads
# of B and C; backward it needs its registers for one, and the kernel says how many steps. With more than one state the
# compiler moves values between threads.
FORWARD_TILES = ((32, Tile(16, 1, 32, 16)), (None, Tile(8, 1, 64, 16)))
BACKWARD_TILES = ((None, Tile(16, 1, 32, 8)),)
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
    y = p.result_like(u)
    states = p.per_chunk()
    if p.nothing:
        return y, p.last_of(states)
    with _on(u.device):
        if p.chunks == 1:
            states[0] = p.first_state
        else:
            spans = p.spans()
            p.launch(
                triton_kernels.sum_chunks, p.chunks - 1, *(*p.inputs, p.bias, p.A, p.weights, p.order, states, spans)
            )
            p.carry(states, spans, p.first_state, reverse=False)
        p.launch(triton_kernels.finish_chunks, p.chunks, *(*p.inputs, p.bias, p.A, p.weights, p.D, p.order, states, y))
    return y, p.last_of(states)


def backward(grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus):
    """Gradients of all tensors but ``order``, in their order; None where one is absent."""
    p = _Problem(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, BACKWARD_TILES)
    grad_leaving = grad_last_state.to(p.dtype).transpose(1, 2).contiguous()

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=p.dtype, device=u.device)

    tiles = p.chunks * p.tiles
    starts, prefixes = empty(tiles, p.batch, p.states, p.channels), empty(tiles, p.batch, p.channels)
    entering, leaving, spans = p.per_chunk(), p.per_chunk(), p.spans()
    grad_u, grad_delta = p.result_like(u), p.result_like(delta)
    grad_context = None if context is None else p.result_like(context)
    grad_A, grad_D, grad_bias = p.per_chunk(), p.spans(), p.spans()
    grad_weights = empty(p.blocks, p.batch, p.groups, 2, p.states, p.padded)
    with _on(u.device):
        if not p.nothing:
            p.launch(
                triton_kernels.sum_chunks_backward,
                p.chunks,
                *(*_rows(grad_y), *p.inputs, p.bias, p.A, p.weights, p.order),
                *(starts, prefixes, entering, leaving, spans),
            )
            p.carry(entering, spans, p.first_state, reverse=False)
            p.carry(leaving, spans, grad_leaving, reverse=True)
            p.launch(
                triton_kernels.finish_chunks_backward,
                p.chunks,
                *(*_rows(grad_y), *p.inputs, p.bias, p.A, p.weights, p.D, p.order),
                *(starts, prefixes, entering, leaving),
                *(grad_u, grad_context, grad_delta, grad_A, grad_weights, grad_D, grad_bias),
            )
        else:
            leaving[0] = grad_leaving
            for sums in (grad_A, grad_D, grad_bias, grad_weights):
                sums.zero_()
        del starts, prefixes, entering, p.weights
        grad_B, grad_C = p.unpacked(grad_weights, 0, B.dtype), p.unpacked(grad_weights, 1, C.dtype)
        return (
            grad_u,
            grad_delta,
            grad_A.sum((0, 1)).T,
            grad_B,
            grad_C,
            None if D is None else grad_D.sum((0, 1)),
            None if delta_bias is None else grad_bias.sum((0, 1)),
            None if initial_state is None else _copy(leaving[0].transpose(1, 2)),
            grad_context,
        )


class _Problem:
    """The arguments of a scan as the kernels want them, and how the sequence is cut."""

    def __init__(
        self, u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, tiles_by_channels
    ):
        self.dtype = compute_dtype(u, delta, A, B, C, D, delta_bias, initial_state, context)
        self.device, self.softplus = u.device, delta_softplus
        self.batch, self.length, self.channels = u.shape
        self.rows, (self.groups, self.states) = delta.shape[1], B.shape[2:]
        self.nothing = self.batch * self.channels == 0
        context = (None, 0) if context is None or context.shape[1] == 0 else _rows(context)
        self.inputs = (*_rows(u), *context, *_rows(delta))
        self.A = A.to(self.dtype).T.contiguous()
        self.D, self.bias = (None if x is None else _aligned(x.to(self.dtype)) for x in (D, delta_bias))
        self.order = None if order is None else order.contiguous()
        shape = (self.batch, self.states, self.channels)
        if initial_state is None:
            self.first_state = torch.zeros(shape, dtype=self.dtype, device=self.device)
        else:
            self.first_state = initial_state.to(self.dtype).transpose(1, 2).contiguous()
        per_group = self.channels // self.groups
        self.tile = next(tile for most, tile in tiles_by_channels if most is None or per_group <= most)
        if self.device.type == "cpu" and INTERPRETED_STATES is not None:
            self.tile = self.tile._replace(states=INTERPRETED_STATES)
        self.blocks = -(-per_group // self.tile.channels)
        self.tiles, self.chunks = self._cut()
        self.padded = self.chunks * self.tiles * self.tile.steps
        self.width = max(self.tile.states, triton.next_power_of_2(self.states))
        self.weights = self._packed(B, C)

    def _cut(self) -> tuple[int, int]:
        """Tiles of a chunk, and chunks: as many as fill the device once, for a few more would take as long again."""
        tiles = -(-self.rows // self.tile.steps)
        side_by_side = max(1, self.batch * self.groups * self.blocks)
        most = max(1, self.tile.programs * _processors(self.device) // side_by_side)
        per_chunk = min(tiles, max(TILES_PER_CHUNK, -(-tiles // most)))
        return per_chunk, -(-tiles // per_chunk)

    def _packed(self, B: Tensor, C: Tensor) -> Tensor:
        """Both weights of every step, (batch, group, padded, 2, width), in the order of the sequence."""
        shape = (self.batch, self.groups, self.padded, 2, self.width)
        dtype = B.dtype if B.dtype == C.dtype else self.dtype
        packed = torch.zeros(shape, dtype=dtype, device=self.device)
        for i, weights in enumerate((B, C)):
            if self.order is not None:
                weights = weights.index_select(1, self.order)
            packed[:, :, : self.rows, i, : self.states] = weights.transpose(1, 2)
        return packed

    def unpacked(self, strips: Tensor, which: int, dtype: torch.dtype) -> Tensor:
        """Gradient of B (0) or C (1), (batch, rows, group, state), from (block, batch, group, 2, state, padded)."""
        in_sequence = strips[:, :, :, which].sum(0)[..., : self.rows].permute(0, 3, 1, 2)
        gradient = torch.empty(in_sequence.shape, dtype=dtype, device=self.device)
        if self.order is None:
            return gradient.copy_(in_sequence)
        return gradient.index_copy_(1, self.order, in_sequence.to(dtype))

    def launch(self, kernel: triton.JITFunction, chunks: int, *tensors) -> None:
        """Run a kernel with a program for every chunk, batch entry, group and block."""
        kernel[(chunks * self.batch * self.groups * self.blocks,)](
            *tensors,
            sizes=Sizes(self.batch, self.channels, self.groups, self.states),
            length=self.length,
            rows=self.rows,
            tiles=self.tiles,
            padded=self.padded,
            STEPS=self.tile.steps,
            STATES=self.tile.states,
            WIDTH=self.width,
            BLOCK=self.tile.channels,
            SOFTPLUS=self.softplus,
            WIDE=any(_extent(x) >= 2**31 for x in tensors if isinstance(x, Rows)),
            ACC=_ACCUMULATORS[self.dtype],
            **OPTIONS,
        )

    def carry(self, states: Tensor, spans: Tensor, first: Tensor, *, reverse: bool) -> None:
        """Turn what chunks yield into what enters them."""
        sizes = Sizes(self.batch, self.channels, self.groups, self.states)
        programs = -(-first.numel() // CARRY_BLOCK)
        if programs == 0:  # no states
            return
        triton_kernels.carry[(programs,)](
            *(states, spans, self.A, first, sizes, self.chunks), BLOCK=CARRY_BLOCK, REVERSE=reverse, **OPTIONS
        )

    def result_like(self, x: Tensor) -> Tensor:
        """Memory for a result of that shape and dtype, contiguous. The interpreter cuts bfloat16 off; torch rounds."""
        dtype = self.dtype if x.device.type == "cpu" else x.dtype
        return torch.empty(x.shape, dtype=dtype, device=x.device)

    def per_chunk(self) -> Tensor:
        """Memory for a state per chunk, (chunk, batch, state, channel)."""
        return torch.empty(self.chunks, self.batch, self.states, self.channels, dtype=self.dtype, device=self.device)

    def spans(self) -> Tensor:
        """Memory for a number per chunk and channel, (chunk, batch, channel)."""
        return torch.empty(self.chunks, self.batch, self.channels, dtype=self.dtype, device=self.device)

    def last_of(self, states: Tensor) -> Tensor:
        """State after the last step, (batch, channels, state)."""
        return _copy(states[-1].transpose(1, 2))


def _aligned(x: Tensor) -> Tensor:
    """The same numbers at an address for which nothing is compiled anew, copied if need be."""
    return x.contiguous() if x.data_ptr() % 16 == 0 else _copy(x)


def _copy(x: Tensor) -> Tensor:
    """The same numbers in memory of their own."""
    return x.clone(memory_format=torch.contiguous_format)


def _rows(x: Tensor) -> tuple[Rows, int]:
    """The tensor with the stride of its rows, and the stride of its batch."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return Rows(x, x.stride(1)), x.stride(0)


def _extent(rows: Rows) -> int:
    """Elements from the first to the last of a batch entry."""
    return (rows.pointer.shape[1] - 1) * rows.row + rows.pointer.shape[2]


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches go to the current device; make it that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a device; the interpreter is told one, and cuts like a GPU all the same."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
