"""Takes a model that was trained in a fork of nnU-Net, or outside of it, into a results folder of ours."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunet_logvmamba.errors import Refused, UserError
from nnunet_logvmamba.files import read_json, staged_files
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.networks.origins import ORIGINS, Origin, is_unfolding, recognised
from nnunet_logvmamba.networks.published_names import first_name
from nnunet_logvmamba.plugin import export
from nnunet_logvmamba.plugin.acceptance import read_model
from nnunet_logvmamba.plugin.adoptable import DATASET, find_checkpoints, folds_of
from nnunet_logvmamba.plugin.checkpoints import CHECKPOINTS, first_difference, read_checkpoint
from nnunet_logvmamba.plugin.model_check import check_plans
from nnunet_logvmamba.plugin.plans import build_network, check_dataset_json, find_plans, to_our_architecture
from nnunet_logvmamba.plugin.plans.earlier import in_todays_form
from nnunet_logvmamba.plugin.trainer_names import PREFIX, find_trainer

WRAPPERS = ("network_weights", "state_dict", "model_state_dict", "model", "net", "network", "module")
"""Where a file may keep its weights, if they are not all of it."""

_PREFIXES = re.compile(r"^((module|_orig_mod|model|net|network)\.)+")  # of several GPUs, compilation, and frameworks
_CONFIGURATIONS = {2: "2d", 3: "3d_fullres"}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # of plans and configurations, which become a part of a folder's name
TWICE = "stored a second time"
UNFOLDING = "fixed kernels of an unfolding, which is indexing here"


@dataclass
class Checkpoint:
    """A checkpoint of others, read.

    Attributes:
        path: Its file.
        fold: Number, or ``all``.
        content: All that is in it.
        weights: By the authors' names, without what stands twice.
        left: Tensors that are not used, by the reason, each with its numbers.
    """

    path: Path
    fold: int | str
    content: Mapping[str, Any]
    weights: dict[str, Tensor]
    left: dict[str, list[int]] = field(default_factory=dict)

    @property
    def trainer(self) -> str | None:
        """Name of the trainer that wrote it, None where it is no checkpoint of nnU-Net."""
        name = self.content.get("trainer_name")
        return name if isinstance(name, str) and isinstance(self.content.get("init_args"), dict) else None

    @property
    def epochs(self) -> int:
        """Finished epochs, 0 where it does not say."""
        epochs = self.content.get("current_epoch")
        return epochs if self.trainer is not None and isinstance(epochs, int) else 0


@dataclass(frozen=True)
class Adopted:
    """What became of a checkpoint.

    Attributes:
        origin: What it holds.
        source: Its file.
        target: The checkpoint that was written.
        epochs: Finished epochs.
        taken: Numbers of the tensors that were taken, by the part of the network.
        left: The same of those that were not, by the reason.
        notes: What else was left, in words.
    """

    origin: Origin
    source: Path
    target: Path
    epochs: int
    taken: dict[str, list[int]]
    left: dict[str, list[int]]
    notes: tuple[str, ...]


def adopt(
    source: Path,
    dataset: str,
    *,
    configuration: str | None = None,
    plans_name: str = "nnUNetPlans",
    fold: str | None = None,
    checkpoint: str = CHECKPOINTS[0],
    overwrite: bool = False,
) -> list[Adopted]:
    """Write a results folder of ours with the weights of others.

    Args:
        source: Results folder of a fork (``TRAINER__PLANS__CONFIGURATION``), a fold of it, or a file of weights.
        dataset: Number or full name of the data set whose model it becomes.
        configuration: What it was trained with; needed where the file does not say and it is not the usual one.
        plans_name: Plans of the data set, for a file that brings none.
        fold: Which fold to take from a folder that has several, or to make of a file.
        checkpoint: File in the folder of a fold.
        overwrite: Replace folds that are there already.

    Returns:
        What became of each checkpoint.

    Raises:
        UserError: If anything is missing, damaged, holds more than data or does not fit; nothing is written then.
    """
    found = [_read(path, number) for number, path in find_checkpoints(source, dataset, checkpoint, fold)]
    origin = _origin(found)
    plans, dataset_json, configuration = _description(found[0], dataset, configuration, plans_name)
    plans["dataset_name"] = _dataset_name(dataset, plans)
    _check_dataset(plans["dataset_name"], dataset_json, found[0].path)
    own = [_renamed(one, origin) for one in found]
    plans = _with_architecture(plans, dataset_json, configuration, origin, found, own)

    results = Path(nnUNet_results.require())
    model = f"{PREFIX}{origin.trainer}__{plans['plans_name']}__{configuration}"
    target = results / plans["dataset_name"] / model
    folds = [f"fold_{one.fold}" for one in found]
    if any(target.resolve() in one.path.resolve().parents for one in found):
        raise UserError(f"{source} lies where the model goes, {target}: move it away, for it would be replaced")
    with staged_files(target, overwrite=_may_replace(target, folds, overwrite), last=folds) as staged:
        built = staged / ".built"
        for one, weights in zip(found, own):
            trainer = _trainer(origin, plans, configuration, one.fold, dataset_json, built, one.path)
            _fill(trainer, one, weights, origin)
        _describe(trainer, found[0].path)
        whole = Path(trainer.output_folder_base)
        _check_same(target, whole)
        with _plans_in_words(found[0].path):
            read_model(whole)
            for name in folds:
                export.read_network(whole / name)  # as nnU-Net does to predict
        for path in list(whole.iterdir()):
            os.replace(path, staged / path.name)
        _remove_empty(whole, built)
    return [
        Adopted(origin, one.path, target / name / CHECKPOINTS[0], one.epochs, _by_part(weights), one.left, _notes(one))
        for one, name, weights in zip(found, folds, own)
    ]


# Reading


def _read(path: Path, fold: str | None) -> Checkpoint:
    content = read_checkpoint(path)
    weights: Any = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(
            f"{path} holds no weights: name a checkpoint of a fork of nnU-Net, or a file of tensors by name"
        )
    init_args = content.get("init_args")
    if fold is None and isinstance(init_args, dict):
        fold = str(init_args.get("fold"))
    fold = "0" if fold is None else fold
    if fold != "all" and not fold.isdecimal():
        raise UserError(f"'{fold}' is no fold: give a number or all")
    found = Checkpoint(path, fold if fold == "all" else int(fold), content, {})
    for name, tensor in weights.items():
        first = first_name(_PREFIXES.sub("", str(name)))
        if first not in found.weights:
            found.weights[first] = tensor
            continue
        if not torch.equal(found.weights[first], tensor):
            raise UserError(f"{path} holds two values for '{first}', of which one is wrong: copy it anew")
        found.left.setdefault(TWICE, []).append(tensor.numel())
    return found


def _origin(found: Sequence[Checkpoint]) -> Origin:
    """The network that all of these checkpoints hold."""
    origins = [_origin_of(one) for one in found]
    for one, origin in zip(found, origins):
        if origin is not origins[0]:
            titles = f"{found[0].path} holds {origins[0].title} and {one.path} {origin.title}"
            raise UserError(f"{titles}: adopt them one by one")
    return origins[0]


def _origin_of(found: Checkpoint) -> Origin:
    origin = recognised(found.weights)
    if origin is None:
        known = ", ".join(origin.title for origin in ORIGINS)
        raise UserError(f"{found.path} holds the weights of another network: those of {known} can be adopted")
    families = {trainer for other in ORIGINS for trainer in other.trainers}
    family = (found.trainer or "").removeprefix(PREFIX)
    if family in families and family not in origin.trainers:
        raise UserError(f"{found.path} says that {found.trainer} wrote it and holds {origin.title}: copy it anew")
    return origin


def _renamed(found: Checkpoint, origin: Origin) -> dict[str, Tensor]:
    """Weights under our names; what is not needed is noted in ``left``.

    Raises:
        UserError: If one has no counterpart, or holds NaN or infinite numbers.
    """
    own = {}
    for theirs, ours in origin.own_names(found.weights).items():
        tensor = found.weights[theirs]
        if not torch.isfinite(tensor).all():
            raise UserError(f"{found.path} holds NaN or infinite values in '{theirs}': take another checkpoint")
        if ours is not None:
            own[ours] = tensor
        elif is_unfolding(tensor):
            found.left.setdefault(UNFOLDING, []).append(tensor.numel())
        else:
            raise UserError(f"{found.path} holds '{theirs}', which {origin.title} does not have: adopt it as published")
    return own


# What it was trained with


def _description(found: Checkpoint, dataset: str, configuration: str | None, plans_name: str) -> tuple[dict, dict, str]:
    """Plans in today's form, ``dataset.json`` and the configuration: of the folder, the checkpoint, or the data set."""
    model = found.path.absolute().parent.parent
    init_args: dict[str, Any] = found.content["init_args"] if found.trainer is not None else {}
    plans: Any
    dataset_json: Any
    files = [model / name for name in ("plans.json", "dataset.json")]
    file = found.path
    if found.trainer is None:
        file, plans, dataset_json = find_plans(dataset, plans_name)
    elif all(path.is_file() for path in files):
        file = files[0]
        plans, dataset_json = (read_json(path, "copy it anew") for path in files)
        check_dataset_json(dataset_json, files[1])
    else:
        plans, dataset_json = (init_args.get(name) for name in ("plans", "dataset_json"))
        if not isinstance(plans, dict) or not isinstance(dataset_json, dict):
            raise UserError(f"{file} brings no plans and no dataset.json: adopt it where its training left it")
        check_dataset_json(dataset_json, file)
    if not isinstance(plans, dict):
        raise UserError(f"{file} holds no plans as nnU-Net writes them: copy them anew")
    plans = in_todays_form({key: value for key, value in plans.items() if key != "continue_training"}, str(file))
    check_plans(plans, file)
    said = init_args.get("configuration")
    said = said if isinstance(said, str) else None
    if said is not None and configuration not in (None, said):
        raise UserError(f"{found.path} was trained with the configuration {said}, not {configuration}: leave -c out")
    chosen = said or configuration or _CONFIGURATIONS[max(tensor.ndim for tensor in found.weights.values()) - 2]
    if chosen not in plans["configurations"]:
        there = ", ".join(plans["configurations"])
        raise UserError(f"{file} has no configuration '{chosen}', it has {there}: name one of these with -c")
    plans.setdefault("plans_name", plans_name)
    for name in (chosen, plans["plans_name"]):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{file}: {name!r} cannot be a part of a folder's name: correct it there")
    return plans, dataset_json, chosen


def _dataset_name(word: str, plans: dict) -> str:
    if DATASET.fullmatch(word):
        return word
    begin = f"Dataset{int(word):03d}_"
    roots = [Path(root.require()) for root in (nnUNet_preprocessed, nnUNet_raw, nnUNet_results) if root.is_set()]
    names = {path.name for root in roots for path in root.glob(f"{begin}*") if path.is_dir()}
    said = str(plans.get("dataset_name"))
    if not names and said.startswith(begin) and DATASET.fullmatch(said):
        return said
    if len(names) != 1:
        there = " and ".join(sorted(names)) or "none"
        raise UserError(f"one data set {begin}* is needed, found {there}: name it in full, such as {begin}Name")
    return names.pop()


def _check_dataset(name: str, dataset_json: dict, file: Path) -> None:
    """Refuse a model of other labels or channels than the data set of that name has here."""
    there = Path(nnUNet_preprocessed.get() or "") / name / "dataset.json"
    if not nnUNet_preprocessed.is_set() or not there.is_file():
        return
    known = read_json(there, "plan the data set anew")
    for key, words in (("labels", "labels"), ("channel_names", "channels")):
        one, other = dataset_json.get(key), known.get(key)
        if key == "channel_names":  # their names may differ, and decide how nnU-Net normalises, which is in the plans
            one, other = len(one or ()), len(other or ())
        if one != other:
            raise UserError(f"{file} has the {words} {one} and {name} has {other}: name the data set that it is for")


def _with_architecture(
    plans: dict,
    dataset_json: dict,
    configuration: str,
    origin: Origin,
    found: Sequence[Checkpoint],
    own: Sequence[Mapping[str, Tensor]],
) -> dict:
    """Plans whose configuration names the network of ours that all of these weights fit."""
    row = catalogue.row(origin.network)
    with _plans_in_words(found[0].path):
        resolved = PlansManager(plans).get_configuration(configuration)
        patch_size, planned = list(resolved.patch_size), resolved.configuration["architecture"]
    try:
        arguments = origin.arguments(own[0], patch_size)
    except UserError as error:
        raise UserError(f"{found[0].path}: {error}") from error
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{found[0].path} holds a part of {origin.title} alone, without {error}: copy it anew"
        ) from error
    result = deepcopy(plans)
    with _plans_in_words(found[0].path):
        architecture = to_our_architecture(planned, patch_size, row.path, **arguments)
        result["configurations"][configuration]["architecture"] = architecture
        manager = PlansManager(result)
        resolved = manager.get_configuration(configuration)
        channels = determine_num_input_channels(manager, resolved, dataset_json)
        classes = manager.get_label_manager(dataset_json).num_segmentation_heads
    try:
        with torch.device("meta"):
            network = build_network(resolved, channels, classes, True)
    except ValueError as error:
        raise UserError(f"configuration '{configuration}' gives no {origin.title}: {error}") from error
    for one, weights in zip(found, own):
        difference = first_difference(network, weights)
        if difference is not None:
            raise UserError(
                f"{one.path} does not fit {origin.title} as configuration '{configuration}' describes it, for "
                f"{channels} channel(s) and {classes} class(es) ({difference}): name what it was trained with"
            )
    return result


@contextmanager
def _plans_in_words(file: Path) -> Iterator[None]:
    """Say in one sentence what plans lack that nnU-Net looks for in them."""
    try:
        yield
    except (UserError, Refused):
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError, AssertionError) as error:
        reason = f"{error!r}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"the plans of {file} are not as nnU-Net writes them ({reason}): copy them anew") from error


# Writing


def _may_replace(target: Path, folds: Iterable[str], overwrite: bool) -> bool:
    """Whether files of the same name may be replaced: if told to, or if there are other folds alone."""
    there = [name for name in folds if (target / name).exists()]
    if there and not overwrite:
        raise UserError(f"{target / there[0]} exists: adopt another fold, or replace it: --overwrite")
    return True


def _check_same(target: Path, built: Path) -> None:
    """Refuse a model that has other plans than the one of that name that is there, if that keeps any fold."""
    kept = {path.name for path in folds_of(target)} - {path.name for path in folds_of(built)} if target.is_dir() else ()
    for there in (target / name for name in ("plans.json", "dataset.json")):
        if kept and there.is_file() and read_json(there, "move the folder") != read_json(built / there.name, ""):
            raise UserError(f"{target} holds a model with another {there.name}: move that folder, and try again")


def _trainer(
    origin: Origin, plans: dict, configuration: str, fold: int | str, dataset_json: dict, results: Path, file: Path
) -> nnUNetTrainer:
    """A trainer of ours that keeps its results in a folder of ours."""
    trainer = find_trainer(f"{PREFIX}{origin.trainer}")
    # It is told that it goes on, lest it ask for the weights that a training from scratch may begin with.
    plans = {**deepcopy(plans), "continue_training": True}
    variables = {"nnUNet_results": str(results), "nnUNet_wandb_enabled": "0"}
    try:
        with _plans_in_words(file), patch.dict(os.environ, variables), redirect_stdout(io.StringIO()):
            return trainer(plans, configuration, fold, deepcopy(dataset_json), torch.device("cpu"))
    except Refused as error:
        raise UserError(str(error)) from error


def _fill(trainer: nnUNetTrainer, found: Checkpoint, weights: Mapping[str, Tensor], origin: Origin) -> None:
    """Let a trainer save weights as if it had been trained."""
    manager, configuration = trainer.plans_manager, trainer.configuration_manager
    channels = determine_num_input_channels(manager, configuration, trainer.dataset_json)
    classes = trainer.label_manager.num_segmentation_heads
    network = trainer.build_network_architecture(
        manager, configuration, channels, classes, trainer.enable_deep_supervision
    )
    network.load_state_dict(weights)
    trainer.network = network
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.current_epoch = found.epochs - 1  # nnU-Net saves the number that follows
    axes = tuple(range(len(configuration.patch_size)))
    mirrored = found.content.get("inference_allowed_mirroring_axes", axes) if found.trainer is not None else axes
    if isinstance(mirrored, list | tuple):
        mirrored = tuple(axis for axis in mirrored if axis in axes)
    trainer.inference_allowed_mirroring_axes = mirrored or None  # as nnU-Net says that there are none
    log = _log(found)
    if log is not None:
        trainer.logger.load_checkpoint({**trainer.logger.get_checkpoint(), **log})
        best = found.content.get("_best_ema")
        trainer._best_ema = float(best) if isinstance(best, Real) else None
    with redirect_stdout(io.StringIO()):
        trainer.print_to_log_file(
            f"Adopted {found.path}, {origin.title}, {found.epochs} epoch(s); not taken: {', '.join(_notes(found))}"
        )
        trainer.save_checkpoint(str(Path(trainer.output_folder) / CHECKPOINTS[0]))


def _log(found: Checkpoint) -> dict[str, list] | None:
    """What was logged per epoch, None where it is not as nnU-Net logs it."""
    log = found.content.get("logging")
    if found.trainer is None or not isinstance(log, dict) or not log:
        return None
    return log if all(isinstance(values, list) for values in log.values()) else None


def _describe(trainer: nnUNetTrainer, source: Path) -> None:
    """Write what nnU-Net writes beside the folds."""
    base = Path(trainer.output_folder_base)
    save_json(trainer.plans_manager.plans, str(base / "plans.json"), sort_keys=False)
    save_json(trainer.dataset_json, str(base / "dataset.json"), sort_keys=False)
    fingerprint = source.absolute().parent.parent / "dataset_fingerprint.json"
    if fingerprint.is_file():
        (base / fingerprint.name).write_bytes(fingerprint.read_bytes())


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those around it up to ``root``, all of them empty."""
    while folder != root.parent:
        folder.rmdir()
        folder = folder.parent


# Telling


def _by_part(weights: Mapping[str, Tensor]) -> dict[str, list[int]]:
    parts: dict[str, list[int]] = {}
    for name, tensor in weights.items():
        parts.setdefault(name.partition(".")[0], []).append(tensor.numel())
    return parts


def _notes(found: Checkpoint) -> tuple[str, ...]:
    left = []
    if found.content.get("optimizer_state"):
        left.append("state of the optimizer: a training that goes on begins with a new one")
    if found.trainer is None:
        left.append("how its images were prepared, which the file does not say: nnU-Net follows the plans")
    elif _log(found) is None:
        left.append("log of its epochs, which is not as nnU-Net writes it")
    return tuple(left)
