"""What comparisons with the golden files of the peers share: reading them, recording a network, saying what differs.

``tests/networks/test_peer_golden.py`` calls ``compare(hyper, tensors)`` of ``golden_<peer>.py`` for each file. Files
name tensors ``param/``, ``in/``, ``mid/``, ``out/`` or ``logits/``, and ``grad/``; what lies behind is in the READMEs
beside them. In a few words: :func:`fill` a network in float64, run it inside :func:`recorded`,
:func:`compare_intermediates`, then outputs by :func:`assert_close`, then gradients; and the forward pass once more in
float32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

LIMIT = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest error, relative to the largest magnitude of the stored tensor, of a forward pass; READMEs of the tensors.

Their values are rounded to float32, which is 6e-8. Gradients are compared in float64 alone: in float32 those next to a
kink flip.
"""
VANISHING = 1e-6
"""Absolute limit in float64 for gradients that are zero in exact arithmetic, and are stored as rounding left them."""

_THINNED = re.compile(r"(?P<name>.+?)(?:[._]every(?P<step>\d+))?(?P<mean>_absmean)?")


def load(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Hyper-parameters and tensors of a golden file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return json.loads(metadata.get("hyper", "{}")), tensors


def kind(path: Path) -> str:
    """What a golden file says it is."""
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("kind", "")


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose name begins with ``prefix``, under the rest of it; it is an error if there are none."""
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    assert found, f"the file has no tensor {prefix}..."
    return found


def fill(module: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> nn.Module:
    """Give a module the stored weights; its parameters must have their names and shapes, no more and no fewer.

    Returns:
        The module, in that dtype, in evaluation mode.
    """
    own = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert own == {name: tuple(value.shape) for name, value in weights.items()}
    module.to(dtype).load_state_dict({name: value.to(dtype) for name, value in weights.items()}, strict=False)
    return module.eval()


def image(tensors: Mapping[str, Tensor], name: str = "in/x", dtype: torch.dtype = torch.float64) -> Tensor:
    """An input, which is stored as it is or as ``<name>_int8``, 32 times as large; it wants a gradient."""
    stored = tensors[name].to(dtype) if name in tensors else tensors[f"{name}_int8"].to(dtype) / 32
    return stored.requires_grad_()


def upstream(y: Tensor) -> Tensor:
    """The gradient from above where none is stored: (((i + 2j + 3k + 5c + b) mod 7) - 3) / 4 by index of an output with
    five axes.
    """
    axes = [torch.arange(size, device=y.device) for size in y.shape]
    b, c, i, j, k = torch.meshgrid(*axes, indexing="ij")
    return (((i + 2 * j + 3 * k + 5 * c + b) % 7) - 3).to(y.dtype) / 4


@contextmanager
def recorded(module: nn.Module, names: Iterable[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Record what the modules below one give, and get, while it runs.

    Args:
        module: Any.
        names: Of the modules to record; None means all.

    Yields:
        Outputs by the names of modules, and by ``<name>/out``; the first input by ``<name>/in``. Of a module that runs
        more than once, the last.
    """
    seen: dict[str, Tensor] = {}

    def note(name: str):
        def hook(_: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                seen[name] = seen[f"{name}/out"] = output
            if inputs and isinstance(inputs[0], Tensor):
                seen[f"{name}/in"] = inputs[0]

        return hook

    wanted = [name for name, _ in module.named_modules() if name] if names is None else names
    hooks = [module.get_submodule(name).register_forward_hook(note(name)) for name in wanted]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def assert_close(name: str, ours: Tensor, theirs: Tensor, limit: float, absolute: float = 0.0) -> None:
    """Assert one shape and values within ``limit`` times the largest stored magnitude, or within ``absolute``."""
    assert ours.shape == theirs.shape, f"{name}: ours is {tuple(ours.shape)}, stored is {tuple(theirs.shape)}"
    ours, theirs = ours.detach().double(), theirs.double()
    error, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= max(limit * scale, absolute), (
        f"{name} {tuple(theirs.shape)} differs by {error:.2e}, {error / scale if scale else float('inf'):.2e} of its "
        f"largest magnitude {scale:.2e}; allowed is {limit:.0e}"
    )


def reduced(ours: Tensor, name: str) -> Tensor:
    """What a file keeps of a tensor, by the end of its name: ``every<k>`` voxel of each axis from the third on,
    ``absmean`` over all voxels, or else everything.
    """
    found = _THINNED.fullmatch(name)
    if found["mean"]:
        return ours.abs().flatten(2).mean(-1)
    if found["step"] is None:
        return ours
    every = slice(None, None, int(found["step"]))
    return ours[(slice(None), slice(None), *[every] * (ours.ndim - 2))]


def plain(name: str) -> str:
    """The name of a stored tensor without what was kept of it."""
    return _THINNED.fullmatch(name)["name"]


def compare_intermediates(
    tensors: Mapping[str, Tensor], seen: Mapping[str, Tensor], limit: float, prefix: str = "mid/"
) -> None:
    """Compare every stored intermediate with what was seen under its name; one that was not seen is an error."""
    for name, theirs in below(tensors, prefix).items():
        assert plain(name) in seen, f"{prefix}{name} is stored and was not recorded; there are {sorted(seen)}"
        assert_close(f"{prefix}{name}", reduced(seen[plain(name)], name), theirs, limit)


def compare_summary(logits: Tensor, tensors: Mapping[str, Tensor], limit: float) -> None:
    """Compare logits of which every k-th voxel, mean and biased deviation per channel are stored."""
    flat = logits.flatten(2)
    found = {"logits_mean": flat.mean(-1), "logits_std": flat.std(-1, correction=0)}
    for name, theirs in below(tensors, "out/").items():
        assert_close(f"out/{name}", found[name] if name in found else reduced(logits, name), theirs, limit)


def compare_gradients(
    module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "grad/param/", vanishing: Iterable[str] = ()
) -> None:
    """Compare every stored gradient of a parameter, in float64, after a backward pass.

    Args:
        module: That was run.
        tensors: Of the file.
        prefix: Of the gradients' names.
        vanishing: Parameters whose gradients are zero in exact arithmetic.
    """
    vanishing = set(vanishing)
    for name, theirs in below(tensors, prefix).items():
        ours = module.get_parameter(name).grad
        assert ours is not None, f"{prefix}{name} is stored and ours has no gradient"
        absolute = VANISHING if name in vanishing else 0.0
        assert_close(f"{prefix}{name}", ours, theirs, LIMIT[torch.float64], absolute)


def compare_input_gradient(gradient: Tensor, tensors: Mapping[str, Tensor], prefix: str = "grad/x") -> None:
    """Compare the gradient of the input, stored whole, thinned out or as its mean per channel, in float64."""
    for name, theirs in tensors.items():
        if plain(name) == prefix:
            assert_close(name, reduced(gradient, name), theirs, LIMIT[torch.float64])
        elif name == f"{prefix}_mean":
            assert_close(name, gradient.flatten(2).mean(-1), theirs, LIMIT[torch.float64])
