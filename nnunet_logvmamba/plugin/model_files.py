"""Whether the checkpoints of a trained model are whole and hold weights that a network can use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.plugin.acceptance import raise_first
from nnunet_logvmamba.plugin.checkpoint_damage import damage_of
from nnunet_logvmamba.plugin.checkpoints import CHECKPOINTS, read_checkpoint


def check_checkpoints(model: Path) -> tuple[int, list[str]]:
    """Read every checkpoint of every fold of a model, without running code from it.

    Args:
        model: Folder ``TRAINER__PLANS__CONFIGURATION``.

    Returns:
        Their number, and sentences about those whose weights cannot be looked at without running code.

    Raises:
        UserError: Naming the first that is damaged or holds weights that are not finite, and how many more there are.
    """
    files = [file for fold in sorted(model.glob("fold_*")) for file in sorted(fold.glob("checkpoint_*.pth"))]
    faults: dict[Path, str] = {}
    odd = []
    for file in files:
        damage = damage_of(file)
        if damage is not None:
            faults[file] = damage
            continue
        try:
            content = read_checkpoint(file)
        except UserError as error:
            odd.append(f"the weights of a checkpoint were not looked at: {error}")
            continue
        bad = next(_not_finite(content.get("network_weights")), None)
        if bad is not None:
            faults[file] = f"holds weights that are NaN or infinite ({bad})"
    raise_first([f"{file} {fault}: {_remedy(file, faults)}" for file, fault in faults.items()], of="checkpoint(s)")
    return len(files), odd


def _not_finite(weights: object) -> Iterator[str]:
    for name, tensor in weights.items() if isinstance(weights, dict) else ():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            number = tensor.numel() - int(torch.isfinite(tensor).sum())
            if number:
                yield f"{number} of {tensor.numel()} in '{name}'"


def _remedy(file: Path, faults: dict[Path, str]) -> str:
    whole = [file.parent / name for name in CHECKPOINTS]
    other = next((path.name for path in whole if path.is_file() and path not in faults), None)
    return "copy it anew" + (f", or use {other} beside it (predict with -chk {other})" if other else " or train again")
