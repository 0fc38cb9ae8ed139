"""The compiled CPU scan: tensors to flat arrays, tasks to threads, parts of results to results.

There are as many threads as ``torch.get_num_threads()`` says, see ``numba_threads``. The kernels are compiled on first
use and kept in ``backends.compiled_code_folder()``.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numba
import numpy as np
import torch
from numba.core.caching import FunctionCache
from torch import Tensor

from nnunet_logvmamba.ops.backends import compiled_code_folder, compute_dtype

from . import numba_kernels, numba_threads
from .numba_kernels import CHUNK
from .numba_vectors import LANES

READS_ROWS = True

# Below these, another task, or another segment, costs more than it saves.
_STATES_PER_TASK = 2**17
_CHUNKS_PER_SEGMENT = 16
# More tasks than threads, which take them one by one, so that a thread that shares its core keeps nobody waiting.
_TASKS_PER_THREAD = 2


def forward(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus):
    """Output (batch, length, channels) and last state (batch, channels, state), both in the compute dtype."""
    p = _Problem(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus)
    y = torch.empty(u.shape, dtype=p.dtype)
    segments = p.segments(p.groups * p.blocks)
    entering = p.entering(segments)
    leaving = torch.empty_like(entering)
    p.forward(segments, entering, leaving, p.elapsed(segments), _flat(y), True)
    return y, leaving[-1]


def backward(grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus):
    """Gradients of all tensors but ``order``, in their order and in the compute dtype; None where one is absent."""
    p = _Problem(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus)
    grad_y = _with_unit_stride(grad_y.to(p.dtype))
    segments = p.segments(p.groups * p.blocks)
    parts = p.parts(segments)
    entering = p.entering(segments)
    grad_leaving = torch.zeros_like(entering)
    grad_leaving[-1] = grad_last_state
    if segments > 1:
        p.carry_backward(segments, grad_y, grad_leaving)

    def empty(*shape: int, dtype: torch.dtype = p.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    ends = (segments, p.batch, p.channels)
    results = (
        empty(p.batch, p.length, p.channels),
        empty(p.batch, p.extra, p.channels),
        empty(p.batch, p.rows, p.channels),
        empty(*ends, p.states, dtype=torch.float64),
        torch.zeros(parts, *B.shape, dtype=p.dtype),
        torch.zeros(parts, *C.shape, dtype=p.dtype),
        empty(*ends, dtype=torch.float64),
        empty(*ends, dtype=torch.float64),
        empty(*ends, p.states),
    )
    arguments = (_flat(entering), _flat(grad_y), grad_y.stride()[:2], _flat(grad_leaving))
    p.run(numba_kernels.backward, segments, parts, *arguments, parts, tuple(map(_flat, results)))
    grad_u, grad_context, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias, grad_entering = results
    return (
        grad_u,
        grad_delta,
        grad_A.sum((0, 1)),
        grad_B.sum(0),
        grad_C.sum(0),
        None if D is None else grad_D.sum((0, 1)),
        None if delta_bias is None else grad_bias.sum((0, 1)),
        None if initial_state is None else grad_entering[0],
        None if context is None else grad_context,
    )


class _Problem:
    """The arguments of a scan as the kernels want them, and what both directions do with them."""

    def __init__(self, u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus):
        self.dtype = compute_dtype(u, delta, A, B, C, D, delta_bias, initial_state, context)
        self.batch, self.length, self.channels = u.shape
        self.rows, (self.groups, self.states) = delta.shape[1], B.shape[2:]
        self.extra = self.rows - self.length
        self.blocks = -(-(self.channels // self.groups) // LANES)
        self.softplus = delta_softplus
        self.initial_state = None if initial_state is None else initial_state.to(self.dtype)
        nothing = torch.zeros(self.channels, dtype=self.dtype)
        context = nothing.new_empty(1, 0, self.channels) if context is None else context
        u, context, delta, B, C = (_with_unit_stride(x.to(self.dtype)) for x in (u, context, delta, B, C))
        self.A = A.to(self.dtype).contiguous()
        D, delta_bias = (nothing if x is None else x.to(self.dtype).contiguous() for x in (D, delta_bias))
        self.tensors = tuple(map(_flat, (u, context, delta, self.A, B, C, D, delta_bias)))
        self.strides = (u.stride()[:2], context.stride()[:2], delta.stride()[:2], B.stride()[:3], C.stride()[:3])
        self.order = np.empty(0, np.int64) if order is None else order.to(torch.int64).contiguous().numpy()
        work = self.batch * self.rows * self.channels * self.states
        self.most_tasks = max(1, work // _STATES_PER_TASK)
        self.threads = min(torch.get_num_threads(), self.most_tasks)

    def segments(self, tasks_per_item: int) -> int:
        """How many parts of the sequence are scanned side by side: one, if there is enough to do otherwise."""
        tasks = self.batch * tasks_per_item
        if tasks == 0 or tasks >= self.threads:
            return 1
        chunks = -(-self.rows // CHUNK)
        return max(1, min(-(-self.threads // tasks), chunks // _CHUNKS_PER_SEGMENT))

    def parts(self, segments: int) -> int:
        """Into how many runs the blocks of a group are dealt, so that there are enough tasks or the blocks are out."""
        tasks = min(self.threads * _TASKS_PER_THREAD, self.most_tasks) if self.threads > 1 else 1
        return max(1, min(self.blocks, -(-tasks // max(1, self.batch * self.groups * segments))))

    def forward(
        self, segments: int, entering: Tensor, leaving: Tensor, spans: np.ndarray, y: np.ndarray, write_y: bool
    ) -> None:
        """Run the forward kernel."""
        parts = self.parts(segments)
        arguments = (_flat(entering), _flat(leaving), spans, y, write_y)
        self.run(numba_kernels.forward, segments, parts, parts, *arguments)

    def run(self, kernel: Callable, segments: int, parts: int, *arguments) -> None:
        """Call ``kernel`` for all tasks, one for each part of a group and segment; threads take one after the other."""
        sizes = (self.batch, self.length, self.extra, self.channels, self.groups, self.states, segments)
        tasks = self.batch * self.groups * parts * segments
        if self.batch * self.channels == 0:
            return  # nothing to compute; sums over nothing are zero
        threads = min(self.threads, tasks)
        waiting = itertools.count()

        def work() -> None:
            while (task := next(waiting)) < tasks:
                kernel(task, task + 1, sizes, self.order, self.softplus, self.tensors, self.strides, *arguments)

        if threads == 1:
            kernel(0, tasks, sizes, self.order, self.softplus, self.tensors, self.strides, *arguments)
        else:
            numba_threads.run(work, threads)

    def elapsed(self, segments: int) -> np.ndarray:
        """Room for the sum of the steps of every segment."""
        return np.empty(segments * self.batch * self.channels, self.A.numpy().dtype)

    def entering(self, segments: int) -> Tensor:
        """State that enters every segment, (segment, batch, channels, state)."""
        entering = torch.zeros(segments, self.batch, self.channels, self.states, dtype=self.dtype)
        if self.initial_state is not None:
            entering[0] = self.initial_state
        if segments > 1:
            leaving, self.spans = torch.empty_like(entering), self.elapsed(segments)
            nowhere = np.empty(0, self.spans.dtype)
            self.forward(segments, entering, leaving, self.spans, nowhere, False)
            fading = self._fading(segments)
            for segment in range(1, segments):
                # Segment 0 has started from its true state; the others from zero.
                entering[segment] = leaving[segment - 1]
                if segment > 1:
                    entering[segment].addcmul_(fading[segment - 1], entering[segment - 1])
        return entering

    def carry_backward(self, segments: int, grad_y: Tensor, grad_leaving: Tensor) -> None:
        """Fill in the gradient of the state that leaves every segment but the last, which is there."""
        handed = torch.empty_like(grad_leaving)
        arguments = (_flat(grad_y), grad_y.stride()[:2], _flat(handed))
        self.run(numba_kernels.carry_backward, segments, self.blocks, *arguments)
        fading = self._fading(segments)
        for segment in range(segments - 1, 0, -1):
            torch.addcmul(handed[segment], fading[segment], grad_leaving[segment], out=grad_leaving[segment - 1])

    def _fading(self, segments: int) -> Tensor:
        """What is left of a state at the end of every segment; finite, so that nothing of zero is zero."""
        spans = torch.from_numpy(self.spans).view(segments, self.batch, self.channels, 1)
        return torch.exp(spans * self.A).clamp_(max=torch.finfo(self.A.dtype).max)


def _with_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _flat(x: Tensor) -> np.ndarray:
    """The memory from the first to the last element of a tensor, as an array without a copy."""
    if x.numel() == 0:
        return np.empty(0, x.numpy().dtype)
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
    return x.as_strided((span,), (1,)).numpy()


class _Kept(FunctionCache):
    """numba's cache of a kernel, without which it is only slower to begin."""

    def save_overload(self, sig, data):
        """Keep compiled code, or say that it cannot be, as on a full disk."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _say_not_kept(error)

    def load_overload(self, sig, target_context):
        """Give code that was kept, or None, also where the index is damaged; it is then begun anew."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # of whatever half a file makes of itself
            with suppress(OSError):
                self.flush()
            return None


def _keep_compiled_code() -> None:
    """Let numba keep what it compiles in our folder, and nowhere else: others do not tell versions of ours apart."""
    of_the_user, ours = numba.config.CACHE_DIR, compiled_code_folder()
    try:
        numba.config.CACHE_DIR = str(ours)
        for kernel in (numba_kernels.forward, numba_kernels.carry_backward, numba_kernels.backward):
            cache = _Kept(kernel.py_func)
            if ours not in Path(cache.cache_path).parents:
                _say_not_kept(f"{ours} cannot be written to")
                return
            kernel._cache = cache
    except RuntimeError as error:
        _say_not_kept(error)
    finally:
        numba.config.CACHE_DIR = of_the_user


def _say_not_kept(why: object) -> None:
    warnings.warn(
        f"The compiled scan cannot be kept and is compiled anew in every process ({why}); set NUMBA_CACHE_DIR to a "
        "folder that can be written to.",
        stacklevel=2,
    )


_keep_compiled_code()
