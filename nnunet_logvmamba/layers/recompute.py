"""Maps that are computed again in the backward pass, where that costs less than to keep them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

_INSIDE = ContextVar("inside", default=False)
"""Whether what is called is part of something that is computed again as a whole."""


def recomputed(
    function: Callable[..., Any],
    modules: Sequence[nn.Module],
    *inputs: Tensor,
    always: bool = False,
    draws: bool = True,
) -> Any:
    """Call a function and keep none of its maps but what comes in and what goes out.

    In the backward pass it is called again, up to what its last operation reads: of a norm, an activation and a
    convolution, the convolution is not. Values and gradients are the same. Weights are those of the forward pass, and
    running statistics change once. Compiled code is left to the compiler, which decides the same for itself; norms with
    running statistics are left as well, since processes of a distributed training may wait for each other in them.

    Args:
        function: Takes ``inputs``.
        modules: Whose weights it reads.
        inputs: Tensors.
        always: Leave nothing to the compiler, and no norm.
        draws: Whether random numbers may be drawn, whose state is then kept; on a GPU that waits for the device.
    """
    if torch.compiler.is_compiling():
        return checkpoint(function, *inputs, use_reentrant=False) if always else function(*inputs)
    if _INSIDE.get() or not _backward_alone_may_follow() or not (always or all(map(_is_stateless, modules))):
        return function(*inputs)
    caller = _Caller(function, modules)
    names, arity = [name for name, _ in caller.named_parameters()], len(inputs)
    context: Context | None = None

    def call(*values: Tensor) -> Any:
        nonlocal context
        if context is None:
            with nothing_recomputed():
                context = copy_context()  # layers may go by it, and the backward pass has another
                return function(*values[:arity])
        weights = dict(zip(names, values[arity:]))
        statistics = {name: buffer.clone() for name, buffer in caller.named_buffers()}
        return context.copy().run(functional_call, caller, weights | statistics, values[:arity])

    # Weights are arguments, so that they are kept, and looked at for changes, like all that a backward pass reads.
    return checkpoint(call, *inputs, *caller.parameters(), use_reentrant=False, preserve_rng_state=draws)


@contextmanager
def nothing_recomputed() -> Iterator[None]:
    """Keep everything in what is called inside, to compare."""
    token = _INSIDE.set(True)
    try:
        yield
    finally:
        _INSIDE.reset(token)


class _Caller(nn.Module):
    """A function with the modules whose weights it reads."""

    def __init__(self, function: Callable[..., Any], modules: Sequence[nn.Module]):
        super().__init__()
        self.owners, self.function = nn.ModuleList(modules), (function,)  # a module is not to be found under two names

    def forward(self, *inputs: Tensor) -> Any:
        return self.function[0](*inputs)


def _backward_alone_may_follow() -> bool:
    """Whether gradients are wanted, and neither forward mode, torch.func nor a tracer watches."""
    return (
        torch.is_grad_enabled()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
    )


def _is_stateless(module: nn.Module) -> bool:
    return next(module.buffers(), None) is None
