"""Networks for nnU-Net plans. The dotted paths of these classes are written into plans files and never move.

Importing this is cheap: each network is loaded when it is asked for.
"""

from typing import Any

from nnunet_logvmamba.networks.catalogue import NAMES

__all__ = list(NAMES)


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return NAMES[name].load()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
