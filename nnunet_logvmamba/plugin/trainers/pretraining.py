"""The encoder's published ImageNet weights in a training: where they lie, what was loaded, how long they are kept.

The file is named by the environment variable ``nnUNet_logvmamba_pretrained`` or by ``pretrained`` under the key
``logvmamba`` of the configuration; the variable beats the configuration, and its word ``none`` means no weights.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from nnunet_logvmamba.files import read_json, replace_text
from nnunet_logvmamba.networks.blocks.vmamba_encoder import VMambaEncoder
from nnunet_logvmamba.networks.blocks.vmamba_weights import load_vmamba_encoder
from nnunet_logvmamba.plugin.checkpoint_damage import damage_of

VARIABLE = "nnUNet_logvmamba_pretrained"
NO_WEIGHTS = "none"
REPORT = "pretrained_encoder.json"
"""File in the folder of a fold that says what was loaded; it also tells a continued training that something was."""

KEPT_EPOCHS = 10
"""Epochs at the start of a training in which the optimizer does not touch a pretrained encoder."""


def checkpoint_asked_for(settings: dict) -> Path | None:
    """The checkpoint that variable or configuration names, None if neither does.

    Args:
        settings: The checked entry ``logvmamba`` of a configuration.

    Raises:
        ValueError: If the file is not there or damaged; the message names it.
    """
    variable = os.environ.get(VARIABLE, "").strip()
    name, asker = (variable, f"the variable {VARIABLE}") if variable else (settings.get("pretrained"), "'pretrained'")
    if name in (None, NO_WEIGHTS):
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(
            f"{asker} asks for the pretrained encoder {path}, which is not there: put the file there, or set "
            f"{VARIABLE}={NO_WEIGHTS} to train from scratch or to go on without it"
        )
    damage = damage_of(path) if zipfile.is_zipfile(path) else None  # PyTorch's older kind of file has no checksums
    if damage is not None:
        raise ValueError(f"the pretrained encoder {path} is damaged ({damage}): fetch the file again")
    return path


def check_checkpoint(encoder: VMambaEncoder, settings: dict) -> None:
    """Refuse, before a training makes a folder, a checkpoint that is not there or does not fit.

    Args:
        encoder: On the meta device.

    Raises:
        ValueError: As ``checkpoint_asked_for`` and ``load_vmamba_encoder`` do.
    """
    checkpoint = checkpoint_asked_for(settings)
    if checkpoint is not None:
        load_vmamba_encoder(encoder, checkpoint)


def start_encoder(
    encoder: VMambaEncoder, checkpoint: Path | None, report_file: Path | None, log: Callable[[str], None]
) -> set[str]:
    """Load an encoder at the start of a training and say so.

    Args:
        checkpoint: File to load; None leaves the encoder as it is.
        report_file: Gets what was loaded, or is removed if nothing was; None on all processes but the first.

    Returns:
        Names of the parameters that were loaded.

    Raises:
        ValueError: If the checkpoint does not fit; nothing is changed then.
    """
    if checkpoint is None:
        if report_file is not None:
            report_file.unlink(missing_ok=True)  # of an earlier training in this folder
        log(
            "ATTENTION: no pretrained encoder was asked for, so it starts from random weights (or from nnU-Net's "
            f"-pretrained_weights). The published model starts from ImageNet: name a VMamba-Tiny checkpoint with "
            f"{VARIABLE}=PATH."
        )
        return set()
    report = load_vmamba_encoder(encoder, checkpoint)
    log(
        f"Pretrained encoder {checkpoint.name}: {len(report.loaded)} tensors, {report.share:.1%} of its parameters; "
        f"not used: {', '.join(report.skipped) or 'none'}; not in the file: {', '.join(report.missing) or 'none'}; "
        f"it is kept as it is for {KEPT_EPOCHS} epochs."
    )
    if report.adapted_channels is not None:
        log(f"Its patch embedding was turned from red, green and blue into {report.adapted_channels} input channel(s).")
    if report_file is not None:
        replace_text(report_file, json.dumps({"checkpoint": checkpoint.name, **asdict(report)}, indent=2) + "\n")
    return set(report.loaded)


def continue_encoder(report_file: Path, log: Callable[[str], None]) -> set[str]:
    """Names of the parameters that were loaded when this training began, by the report it left; says so in the log.

    Raises:
        ValueError: If the report is damaged; the message names it.
    """
    if not report_file.is_file():
        log(f"There is no {report_file.name} beside the checkpoint: this training began without a pretrained encoder.")
        return set()
    remedy = f"copy it anew; it says which of {KEPT_EPOCHS} epochs' weights are kept as they were loaded"
    report = read_json(report_file, remedy)
    try:
        name, loaded = report["checkpoint"], set(report["loaded"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{report_file} is not what the training wrote ({error!r}): {remedy}") from error
    log(f"This training began with the pretrained encoder {name}.")
    return loaded
