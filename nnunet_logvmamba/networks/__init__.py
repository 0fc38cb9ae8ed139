"""Networks for nnU-Net plans. The dotted paths of these classes are written into plans files and never move.

Importing this is cheap: each network is loaded when it is asked for.
"""

import importlib
from typing import Any

_HOME = {"LoGVMambaSwinUNet": "log_vmamba.swin_unet", "LoGVMambaUNet": "log_vmamba.unet"}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
