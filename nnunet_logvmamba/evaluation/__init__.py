"""Scores of segmentations; usable without nnU-Net.

The names below take the prediction first and the truth second, as ``logvmamba evaluate PREDICTIONS REFERENCES`` does.
(The functions of the modules inside have the truth first.) Importing this is cheap: each is loaded when it is asked
for.
"""

import importlib
from typing import Any

_HOME = {
    "dice": "public",
    "iou": "public",
    "volume_difference": "public",
    "surface_distances": "public",
    "hd95": "public",
    "surface_dice": "public",
    "count_lesions": "public",
    "instance_scores": "public",
    "recover_instances": "instances",
    "to_classes": "instances",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
