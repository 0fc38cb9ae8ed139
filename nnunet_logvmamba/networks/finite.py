"""How a network refuses numbers that are not finite: in its weights, and in what it gives."""

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from nnunet_logvmamba.errors import NotFiniteError
from nnunet_logvmamba.layers import LISTENERS, all_finite, count_not_finite, finite

_NNUNETS_SIDE = "nnunet_logvmamba.plugin.prediction_faults"


def _nnunets_side() -> ModuleType | None:
    """Give what knows which file nnU-Net is at, where nnU-Net's predictor is loaded.

    By its name and in the moment of need: nothing here may know nnU-Net, and a trainer of nnU-Net's own that builds one
    of our networks brings nothing along that could have said so before.
    """
    return importlib.import_module(_NNUNETS_SIDE) if "nnunetv2.inference.predict_from_raw_data" in sys.modules else None


def _logits_not_finite(logits: Tensor, image: Tensor) -> bool:
    side = _nnunets_side()
    return side is not None and side.logits_not_finite(logits, image)


LISTENERS.append(_logits_not_finite)


def refuse_weights(weights: Mapping[str, Any]) -> None:
    """Refuse weights that are not finite.

    Args:
        weights: By name; what is no tensor of floating point is passed over. A tensor that was looked at before and has
            not changed is not looked at again, since nnU-Net loads the same weights for every image.

    Raises:
        NotFiniteError: Naming the first tensor, how many of its numbers are NaN or infinite, and the number of others.
    """
    side = _nnunets_side()
    bad = {name: tensor for name, tensor in weights.items() if _is_bad(tensor)}
    if bad:
        name, tensor = next(iter(bad.items()))
        file = None if side is None else side.weights_file()
        raise NotFiniteError(
            f"{'These weights hold' if file is None else f'{file} holds'} numbers that are NaN or infinite: "
            f"{count_not_finite(tensor)} of {tensor.numel()} in '{name}'"
            f"{f' and more in {len(bad) - 1} other tensor(s)' if len(bad) > 1 else ''}. The file is damaged or its "
            "training diverged: use another checkpoint, such as checkpoint_best.pth, or copy the file anew."
        )
    if side is not None:
        side.case_begins()


_FOUND_FINITE = WeakTensorKeyDictionary()
"""Tensors and their counts of changes when they were looked at."""


def _is_bad(tensor: object) -> bool:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.is_meta:
        return False
    version = None if tensor.is_inference() else tensor._version
    if version is not None and _FOUND_FINITE.get(tensor) == version:
        return False
    if not all_finite(tensor.detach()):
        return True
    _FOUND_FINITE[tensor] = version
    return False


def _is_exporting() -> bool:
    return torch.jit.is_tracing() or (hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting())


def checked(outputs: Any, x: Tensor, training: bool) -> Any:
    """Give what a network gives for an image; in evaluation its finest logits pass through the op that refuses.

    Args:
        outputs: (batch, classes, *spatial), or a list or tuple that begins with it, as one of all scales does.
        x: The image, (batch, channels, *spatial).
        training: Whether the network is in training mode.
    """
    if training or _is_exporting():
        return outputs
    if isinstance(outputs, Tensor):
        return finite(outputs, x)
    values = [checked(outputs[0], x, training), *outputs[1:]]
    return type(outputs)(*values) if hasattr(outputs, "_fields") else type(outputs)(values)  # a named tuple or another


def watched(forward: Callable) -> Callable:
    """Let what a ``forward`` gives be :func:`checked`."""

    @wraps(forward)
    def watching(self: nn.Module, x: Tensor, *others: Any, **options: Any) -> Any:
        return checked(forward(self, x, *others, **options), x, self.training)

    return watching


def watch(network: nn.Module) -> nn.Module:
    """Let a network that is not of this package refuse what those of this package do."""
    network.register_load_state_dict_pre_hook(_before_loading)
    network.register_forward_hook(_after_forward)
    return network


# By name, so that networks can be pickled.
def _before_loading(network: nn.Module, weights: dict[str, Any], *_: Any) -> None:
    refuse_weights(weights)


def _after_forward(network: nn.Module, inputs: tuple[Tensor, ...], outputs: Any) -> Any:
    return checked(outputs, inputs[0], network.training)
