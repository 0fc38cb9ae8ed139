"""A trained network as one ONNX file, with what nnU-Net knows about its input and output as metadata in the file."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_logvmamba import __version__
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import replacing
from nnunet_logvmamba.plugin.checkpoints import CHECKPOINTS, first_difference, read_checkpoint
from nnunet_logvmamba.plugin.environment import version_of
from nnunet_logvmamba.plugin.trainer_names import built_by, find_trainer
from nnunet_logvmamba.results.runs import absolute, folds_of, is_fold, read_dataset_json, read_json

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
    from torch import nn

FORMAT = "1"
"""Of the metadata."""

INPUT, OUTPUT = "image", "logits"
"""Names of input and output in the file."""

LARGEST_ERROR = 1e-3
"""What ONNX Runtime may differ from torch, absolute or relative to the largest logit, whichever is more."""

_NEEDED = ("onnx", "onnxscript")
_AXES = {2: ("y", "x"), 3: ("z", "y", "x")}


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with the weights of a checkpoint, and where all of it comes from.

    Attributes:
        network: In evaluation mode on the CPU, giving the finest scale alone.
        patch_size: Voxels per axis that the file is made for, in the axis order of nnU-Net's preprocessed data.
        metadata: What to feed it and what comes out, text by name.
    """

    network: nn.Module
    channels: int
    patch_size: tuple[int, ...]
    metadata: dict[str, str]


def find_fold(run: Path, fold: str | None) -> Path:
    """Give the folder of a fold, named itself or by its model.

    Args:
        run: Folder ``fold_X``, or the folder of its model ``TRAINER__PLANS__CONFIGURATION``.
        fold: Which one, where ``run`` is a model with several.

    Raises:
        UserError: If there is no such fold, or it is not said which one is meant.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a folder: name TRAINER__PLANS__CONFIGURATION or a fold in it")
    run = absolute(run)
    if is_fold(run):
        if fold is not None and run.name != f"fold_{fold}":
            raise UserError(f"{run} is fold {run.name[5:]} and --fold says {fold}: leave --fold out")
        return run
    found = folds_of(run)
    if not found:
        raise UserError(f"{run} is no trained model: name TRAINER__PLANS__CONFIGURATION or a fold in it")
    names = ", ".join(path.name[5:] for path in found)
    if fold is None and len(found) > 1:
        raise UserError(f"{run} has the folds {names}: choose one with --fold")
    chosen = run / f"fold_{fold}" if fold is not None else found[0]
    if chosen not in found:
        raise UserError(f"{run} has no fold {fold}, it has {names}: choose one of them with --fold")
    return chosen


def read_network(
    fold: Path, *, checkpoint_name: str = CHECKPOINTS[0], patch_size: Sequence[int] | None = None
) -> TrainedNetwork:
    """Build the network of a fold as nnU-Net does to predict, and load a checkpoint into it.

    Args:
        fold: Folder ``fold_X`` of a trained model.
        checkpoint_name: File in it.
        patch_size: Voxels per axis; None means those of the plans.

    Raises:
        UserError: If a file is missing or damaged, the trainer is not installed, the weights are those of another
            network, or it takes no such patch.
    """
    path = fold / checkpoint_name
    if not path.is_file():
        others = [name for name in CHECKPOINTS if (fold / name).is_file()]
        remedy = f"name another with --checkpoint, there is {' and '.join(others)}" if others else "train first"
        raise UserError(f"{fold} has no {checkpoint_name}, so this training is not finished: {remedy}")
    model = fold.parent
    dataset_json, plans = read_dataset_json(model), read_json(model / "plans.json")
    content = read_checkpoint(path)
    import torch  # late, for what is said above
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    from nnunet_logvmamba.plugin.plans import check_patch

    try:
        weights, trainer_name = content["network_weights"], str(content["trainer_name"])
        configuration_name = content["init_args"]["configuration"]
        plans_manager = PlansManager(plans)
        configuration = plans_manager.get_configuration(configuration_name)
        channels = determine_num_input_channels(plans_manager, configuration, dataset_json)
        labels = plans_manager.get_label_manager(dataset_json)
        mirrored = content.get("inference_allowed_mirroring_axes")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path} and {model / 'plans.json'} are not what nnU-Net writes ({error!r}): copy the model anew"
        ) from error
    if patch_size is not None:
        configuration = ConfigurationManager({**configuration.configuration, "patch_size": list(patch_size)})
    build = _builder(trainer_name, plans_manager, configuration, channels, labels.num_segmentation_heads)
    try:
        with torch.device("meta"):
            check_patch(build(), configuration, channels)
        network = build()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{model}: {str(error).splitlines()[0]}") from error
    difference = first_difference(network, weights)
    if difference is not None:
        raise UserError(
            f"{path} holds another network than {model / 'plans.json'} describes ({difference}): use the plans.json "
            "that was written when it was trained"
        )
    network.load_state_dict(weights)
    source = {
        "trainer": trainer_name,
        "plans": plans_manager.plans_name,
        "configuration": configuration_name,
        "dataset": plans_manager.dataset_name,
        "fold": fold.name.removeprefix("fold_"),
        "checkpoint": checkpoint_name,
        "epochs": content.get("current_epoch"),
        "versions": {name: version_of(name) for name in ("nnunetv2", "torch")} | {"nnunet-logvmamba": __version__},
    }
    channel_names = dataset_json.get("channel_names") or dataset_json.get("modality", {})
    axes = _AXES[len(configuration.patch_size)]
    metadata = {
        "format": FORMAT,
        "input": f"{INPUT}: float32 (batch, channel, {', '.join(axes)}), preprocessed as nnU-Net does; only the batch "
        "may vary",
        "output": f"{OUTPUT}: float32 (batch, class, {', '.join(axes)}), before "
        + ("the sigmoid; regions overlap" if labels.has_regions else "the softmax; the largest is the label"),
        "patch_size": list(map(int, configuration.patch_size)),
        "channel_names": [channel_names[key] for key in sorted(channel_names, key=int)],
        "spacing": list(map(float, configuration.spacing)),
        "transpose_forward": plans_manager.transpose_forward,
        "normalization_schemes": configuration.normalization_schemes,
        "use_mask_for_norm": configuration.use_mask_for_norm,
        "foreground_intensity_properties_per_channel": plans_manager.foreground_intensity_properties_per_channel,
        "labels": dataset_json["labels"],
        "regions_class_order": dataset_json.get("regions_class_order"),
        "mirror_axes": mirrored,
        "previous_stage": configuration.previous_stage_name,
        "file_ending": dataset_json["file_ending"],
        **source,
    }
    written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    return TrainedNetwork(network.eval(), channels, tuple(map(int, configuration.patch_size)), written)


def _builder(
    trainer_name: str, plans_manager: PlansManager, configuration: ConfigurationManager, channels: int, classes: int
):
    """Give a function that builds the network as the trainer does for prediction."""
    try:
        trainer = find_trainer(trainer_name)
    except UserError as error:
        raise UserError(
            f"the model was trained by {trainer_name}, and nnU-Net finds no trainer of that name: install the package "
            "that holds it"
        ) from error
    return partial(built_by, trainer, plans_manager, configuration, channels, classes, False)


def check_packages() -> None:
    """Raise UserError, with the command that installs them, if a package is missing that writes ONNX files."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be installed to write ONNX files: run python -m pip install onnx onnxscript "
            "onnxruntime"
        )


def write_onnx(trained: TrainedNetwork, target: Path) -> float | None:
    """Write the ONNX file, and compare it with the network on a random patch before it gets its name.

    Returns:
        The largest difference of a logit between ONNX Runtime and torch; None if ONNX Runtime is not installed.

    Raises:
        UserError: If they differ by more than ``LARGEST_ERROR``; nothing is written then.
        OSError: If the file cannot be written.
    """
    import torch
    from onnxscript import optimizer

    # Two entries, since the exporter takes a batch of one for a constant.
    example = torch.zeros(2, trained.channels, *trained.patch_size)
    with _quiet():
        program = torch.onnx.export(
            trained.network,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            optimize=False,
            verbose=False,
        )
        # The rest of the exporter's optimizer compares every node with every other: minutes for a network of 60 scans.
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
        program.model.metadata_props.update(trained.metadata)
        with replacing(target) as temporary:
            program.save(temporary, external_data=False)
            return _difference(trained, temporary)


def _difference(trained: TrainedNetwork, path: Path) -> float | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime
    import torch

    image = torch.randn(1, trained.channels, *trained.patch_size, generator=torch.Generator().manual_seed(0))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], {INPUT: image.numpy()})
    with torch.inference_mode():
        expected = trained.network(image)
    difference = (torch.from_numpy(found) - expected).abs().max().item()
    if not difference <= LARGEST_ERROR * max(1.0, expected.abs().max().item()):
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} differs from torch by {difference:.1e} on a random patch, so "
            "nothing was written: try the versions in constraints.txt"
        )
    return difference


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says to its developers from the user: warnings, and notes of its optimizer."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
