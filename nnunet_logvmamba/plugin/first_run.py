"""A whole first run on a data set: which commands are due, what is finished already, and how they are run.

Everything is done by the commands that a user would type. So what they leave on the disk says what is finished, and a
run that was interrupted goes on where it was, whoever began it.
"""

from __future__ import annotations

import filecmp
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

from nnunet_logvmamba.claims import Holder, claimed, holder_of
from nnunet_logvmamba.cores import usable_cores
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import check_same_grid, find_cases, image_of, read_grid, read_labels, turned_like
from nnunet_logvmamba.evaluation.dataset_json import Labels, channels_of, labels_of
from nnunet_logvmamba.evaluation.folders import check_values
from nnunet_logvmamba.evaluation.parallel import map_cases
from nnunet_logvmamba.files import move_into, read_json, replace_text
from nnunet_logvmamba.interrupts import kept_to_ourselves, put_off
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin.acceptance import Model, check_folder, check_images
from nnunet_logvmamba.plugin.checkpoint_damage import damage_of
from nnunet_logvmamba.plugin.checkpoints import CHECKPOINTS, read_checkpoint
from nnunet_logvmamba.plugin.environment import not_written_out
from nnunet_logvmamba.plugin.plans import (
    NNUNETS_FOLDS,
    NNUNETS_PLANS,
    SPLITS,
    TRAINING_KEY,
    check_folds,
    check_to_train,
    check_training_settings,
    configurations_of,
    first_stage_of,
    no_such_plans,
    why_not_planned,
)
from nnunet_logvmamba.plugin.trainer_names import check_trainer, find_trainer
from nnunet_logvmamba.results import runs
from nnunet_logvmamba.results.predicted import PREDICTED_BY, SCORED_AGAINST, SCORES
from nnunet_logvmamba.results.record import RECORD_NAME, read_record

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
PLANS = NNUNETS_PLANS
PLANNED = ("2d", "3d_fullres", "3d_lowres")
QUICK = {"num_epochs": 8, "num_iterations_per_epoch": 50, "num_val_iterations_per_epoch": 5}
NNUNETS_SCHEDULE = {"num_epochs": 1000, "num_iterations_per_epoch": 250}
MANY_STEPS = 25_000
"""A tenth of nnU-Net's schedule."""
QUICK_BATCH = 2
QUICK_VOXELS = {2: 128 * 128, 3: 24 * 40 * 24}
"""The patch of a quick run has at most so many voxels per axes of the network, if its strides allow it."""

_STEP = 8
"""Voxels by which the patch of a quick run shrinks where a network has no strides."""

COPIED_LABELS = "gt_segmentations"
PREPROCESSING_LOCK = "preprocessing.lock"
PREDICTION_LOCK = "prediction.lock"
UNFINISHED = "unfinished"
"""Folder in the target where a prediction lies until it is whole; what an earlier one left there is removed."""

LAYOUT = (
    "nnU-Net wants DATASET/dataset.json, DATASET/imagesTr/<case>_0000.nii.gz (one file per channel) and "
    "DATASET/labelsTr/<case>.nii.gz, DATASET being Dataset123_Name in nnUNet_raw"
)


@dataclass(frozen=True)
class NewScans:
    """Scans to predict: their folder, that to write to, and that of their true segmentations, if there are any."""

    images: Path
    predictions: Path
    references: Path | None = None


@dataclass(frozen=True)
class Derived:
    """A configuration that ``logvmamba plans`` writes.

    ``content`` says how it differs from the one it is derived from: ``batch_size``, ``patch_size``, ``network``,
    ``keep_network``, and tables ``set`` and ``train``.
    """

    name: str
    content: Mapping[str, Any]

    @property
    def options(self) -> list[str]:
        """The same as options of the command."""
        words: list[str] = []
        for key, value in self.content.items():
            option = f"--{key.replace('_', '-')}"
            if isinstance(value, Mapping):
                words += [option, *(f"{name}={_json_or_word(each)}" for name, each in value.items())] if value else []
            elif isinstance(value, list):
                words += [option, *map(str, value)]
            elif value is not False:
                words += [option] if value is True else [option, str(value)]
        return words


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        dataset: Number or name of a data set in ``nnUNet_raw``.
        configuration: One that nnU-Net plans, or that the plans have already.
        trainers: Names for ``-tr``; two or more are compared.
        folds: Numbers, or ``all``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        quick: Train a short schedule with small patches.
        new: What to predict, None for nothing.
        plans: Name of the plans; others than nnU-Net's own must be there.
        derived: Train this configuration, which ``logvmamba plans`` derives from ``configuration``.
        num_gpus: For one training.
        elsewhere: The commands run on another machine, so ``device`` is taken as it is.
    """

    dataset: str
    configuration: str
    trainers: tuple[str, ...]
    folds: tuple[str, ...] = ("0",)
    device: str = "auto"
    quick: bool = False
    new: NewScans | None = None
    plans: str = PLANS
    derived: Derived | None = None
    num_gpus: int = 1
    elsewhere: bool = False


@dataclass(frozen=True)
class Step:
    """One command, or why it need not run; ``checkpoints`` are those that it reads."""

    title: str
    command: tuple[str, ...] = ()
    finished: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    checkpoints: tuple[Path, ...] = ()

    @property
    def typed(self) -> str:
        """The command as a user would type it."""
        return " ".join(
            [*(f"{name}={shlex.quote(value)}" for name, value in self.environment.items()), shlex.join(self.command)]
        )


class FirstRun:
    """A request that was checked: everything that can be known to fail has been said before the first command."""

    def __init__(self, request: Request):
        self.request = request
        self.raw, self.preprocessed, self.results = nnunet_folders()
        self.dataset = find_dataset(request.dataset, self.raw)
        self.number = _number(self.dataset)
        for fold in request.folds:
            if not re.fullmatch(r"all|\d+", fold):
                raise UserError(f"--fold takes the numbers of folds, as 0, or all, not '{fold}'")
        folds = [fold if fold == "all" else str(int(fold)) for fold in request.folds]  # 00 is 0
        self.request = replace(request, folds=tuple(dict.fromkeys(folds)))
        self._check_planned(self._plans())
        listed = self._cases_of_splits()
        for trainer in request.trainers:
            check_trainer(trainer)
        if request.new is not None:
            check_folder(request.new.images)
            if request.new.references is not None:
                find_cases(request.new.references)
        self.dataset_json, self.cases = read_raw(self.raw / self.dataset)
        self._check_cases(listed)
        for trainer in request.trainers:
            self._check_axes(find_trainer(trainer))
        self.device = request.device if request.elsewhere else device_here(request.device)
        self.new_cases = 0
        if request.new is not None:
            self.new_cases = self._check_new_images()
            self._check_targets()

    # What is checked

    def _check_planned(self, plans: dict | None) -> None:
        names = PLANNED if plans is None else tuple(plans["configurations"])
        self._check_first_stage(plans)
        if self.request.configuration not in names:
            source = "nnU-Net plans" if plans is None else f"the plans of {self.dataset} have"
            why = "" if plans is None else why_not_planned(plans, self.request.configuration)
            raise UserError(
                f"there is no configuration '{self.request.configuration}': {source} {', '.join(names)}{why}"
            )

    def _check_first_stage(self, plans: dict | None) -> None:
        name = self.request.configuration
        first = first_stage_of(plans["configurations"], name) if plans else None
        if name == "3d_cascade_fullres":
            first = "3d_lowres"
        if first is not None:
            raise UserError(
                f"'{name}' is the second stage of a cascade and needs the first one of all folds: run {first} with "
                "--fold 0 1 2 3 4, then train the second stage by hand"
            )

    @property
    def _splits(self) -> Path:
        return self.preprocessed / self.dataset / SPLITS

    def _cases_of_splits(self) -> set[str]:
        """Give the cases of the folds that there are, and refuse others, for which nnU-Net would draw cases at random,
        whatever the folds keep apart.
        """
        file = self._splits
        if not file.is_file():
            self._check_folds(NNUNETS_FOLDS, "nnU-Net makes")
            return set()
        try:
            splits = json.loads(file.read_text(encoding="utf-8"))
            listed = {case for split in splits for case in (*split["train"], *split["val"])}
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{file} holds no folds ({error!r}): remove it, and nnU-Net makes new ones") from error
        self._check_folds(len(splits), f"{file} has")
        return listed

    def _check_cases(self, listed: set[str]) -> None:
        """Refuse folds of cases that are gone, or of too few, on which nnU-Net's training stops without a reason."""
        if self.request.folds != ("all",):
            check_folds(len(self.cases), self._splits)
        gone = sorted(listed - self.cases.keys())
        if gone:
            raise UserError(
                f"{self._splits} lists {len(gone)} case(s) that the data set does not have, the first is {gone[0]}: "
                "correct it, or remove it, and nnU-Net makes new folds"
            )

    def trained_otherwise(self, trainer: str, plans: dict) -> str | None:
        """Say in what the plans of a trained model differ from a configuration of the same name; None if in nothing."""
        from nnunet_logvmamba.plugin.plans import differing

        model = self.model(trainer)
        folds = runs.folds_of(model) if model.is_dir() else []
        if not (model / "plans.json").is_file() or not any(runs.is_begun(f) or runs.is_finished(f) for f in folds):
            return None
        # Some trainers write the stages of their network into the plans that they keep.
        own = getattr(find_trainer(trainer), "_own_plans", lambda plans, configuration: plans)
        keys = differing(own(plans, self.configuration), runs.read_json(model / "plans.json"), self.configuration)
        if keys is None:
            return f"{model} was trained otherwise, its plans lack {self.configuration}"
        listed = f"differ from {self.request.plans} in {', '.join(keys)}"
        return f"{model} was trained otherwise, its plans {listed}" if keys else None

    def attentions(self) -> list[str]:
        """Give what is to be known before anything is run, in sentences.

        Raises:
            UserError: As :meth:`check_unchanged`.
        """
        plans, said = self._plans(), [self.check_unchanged()]
        if plans is not None and self.configuration in plans["configurations"]:
            # Others' trainers may keep what plans they like.
            ours = [trainer for trainer in self.request.trainers if hasattr(find_trainer(trainer), "_own_plans")]
            others = [self.trained_otherwise(trainer, plans) for trainer in ours]
            said += [f"ATTENTION: {other}; what is trained stays as it is" for other in others if other is not None]
        return [each for each in (*said, self.unlisted()) if each is not None]

    def check_unchanged(self) -> str | None:
        """Refuse to train on what was preprocessed when the data set was another; if all is trained, say so.

        Compared are the copies of label maps and of dataset.json that nnU-Net's preprocessing leaves, so images are
        not, nor what somebody preprocessed in part since.

        Raises:
            UserError: Naming what differs, and what to do.
        """
        if self.changed is None:
            return None
        changed, remedy = self.changed
        asked = [(trainer, fold) for trainer in self.request.trainers for fold in self.request.folds]
        if all(self._is_trained(trainer, fold) for trainer, fold in asked):
            return f"ATTENTION: {changed}; the models are trained on that"
        raise UserError(f"{changed}: {remedy}, or put back what was there")

    @cached_property
    def changed(self) -> tuple[str, str] | None:
        """What changed in the data set since it was preprocessed, and what to do; None if nothing did."""
        folder, raw = self.preprocessed / self.dataset, self.raw / self.dataset
        file = folder / "dataset.json"
        there = runs.read_json(file) if file.is_file() else self.dataset_json
        for key in ("channel_names", "labels", "regions_class_order", "file_ending"):
            if there.get(key) != self.dataset_json.get(key):
                folds = f" all but {SPLITS}, which holds the folds, from" if self._splits.is_file() else ""
                return (
                    f"{raw / 'dataset.json'} has other {key} than {file}, with which the cases were preprocessed",
                    f"remove{folds} {folder}, and plan and preprocess anew",
                )
        ending, changed = self.dataset_json["file_ending"], []
        for case, (_, label) in read_layout(raw)[1].items():
            kept = folder / COPIED_LABELS / f"{case}{ending}"
            if kept.is_file() and not _same_labels(Path(label), kept):
                changed.append(label)
        if not changed:
            return None
        of_cases = [path for path in sorted(folder.iterdir()) if path.is_dir() and any(path.glob("*.pkl"))]
        return (
            f"{len(changed)} label map(s) are not what was preprocessed, the first is {changed[0]}",
            f"remove {', '.join(map(str, [*of_cases, folder / COPIED_LABELS]))}, and they are preprocessed anew",
        )

    def unlisted(self) -> str | None:
        """Say which cases are in no fold, where no training takes all."""
        listed = self._cases_of_splits()
        beyond = sorted(self.cases.keys() - listed) if listed and "all" not in self.request.folds else []
        if not beyond:
            return None
        return (
            f"ATTENTION: {len(beyond)} of {len(self.cases)} case(s) are in no fold of {self._splits}, the first is "
            f"{beyond[0]}: they are neither trained nor validated on"
        )

    def _check_folds(self, number: int, source: str) -> None:
        beyond = [fold for fold in self.request.folds if fold != "all" and int(fold) >= number]
        if beyond:
            raise UserError(f"there is no fold {beyond[0]}: {source} {number} folds, 0 to {number - 1}")

    def _check_axes(self, trainer: type) -> None:
        """Refuse a trainer whose network is not made for the axes of the configuration."""
        network = getattr(trainer, "network_name", None)
        if network is None:
            return
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from nnunet_logvmamba.plugin.plans import check_axes

        plans, name = self._plans(), self.request.configuration
        planned = plans is not None and PlansManager(plans).get_configuration(name)
        check_axes(catalogue.row(network), len(planned.patch_size) if planned else 2 if name == "2d" else 3)

    def _check_new_images(self) -> int:
        """Read every scan as ``nnUNetv2_predict`` will, now rather than after hours of training."""
        new = self._new
        reader = reader_of(self.dataset_json, next(iter(self.cases.values()))[0])
        channels = channels_of(self.dataset_json, "dataset.json")
        ending = self.dataset_json["file_ending"]
        scans = [list(folder.glob(f"*_0000{ending}")) for folder in (new.images, new.predictions)]
        if scans[1] and not scans[0]:
            raise UserError(
                f"{new.predictions} holds scans and {new.images} none: --predict takes the folder of the scans "
                "first, then that to write to"
            )
        count, _, odd = check_images(
            new.images, Model(channels, ending, reader, self._labels), processes=usable_cores()
        )
        for sentence in odd:
            print(f"ATTENTION: {sentence}.", file=sys.stderr)
        if new.references is not None:
            self._check_references(new.references)
            known = [case for case, files in self.cases.items() if _is_copy(new.images / Path(files[0]).name, files[0])]
            if known:
                print(
                    f"ATTENTION: {len(known)} of the scans in {new.images} are cases of {self.dataset} itself, the "
                    f"first is {known[0]}: their scores do not tell how well new scans are segmented.",
                    file=sys.stderr,
                )
        return count

    def _check_targets(self) -> None:
        for trainer in self.request.trainers:
            self._check_target(trainer)
            there, finished = self._record(self._target(trainer))
            if not finished or there.get("scans") != self._scans:
                self._refuse_to_predict_over_others(trainer)

    def _check_target(self, trainer: str) -> None:
        """Refuse to write to a folder that holds anything else."""
        target, wanted = self._target(trainer), self._predicted_by(trainer)
        there = {path.name for path in target.iterdir()} - {PREDICTION_LOCK} if target.is_dir() else target.exists()
        other = _what_differs(self._record(target)[0], wanted) if there else None
        if other is not None:
            raise UserError(
                f"{target} holds something else than predictions of this run{other}: name a new or an empty folder"
            )

    def _check_references(self, folder: Path) -> None:
        """Refuse true segmentations that the scores of the predictions would stop at."""
        from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

        images, ending = self._new.images, self.dataset_json["file_ending"]
        cases = get_identifiers_from_splitted_dataset_folder(str(images), ending)
        references = find_cases(folder)
        missing = sorted(set(map(str, cases)) - references.keys())
        if missing and (image := image_of(cases, references)) is not None:
            raise UserError(
                f"{folder} holds images of the scans, the first is '{image}': name the folder of their true "
                "segmentations with --references"
            )
        if missing:
            raise UserError(
                f"{folder} holds no reference for {len(missing)} scan(s) of {images}, the first is '{missing[0]}': "
                f"add it, or leave --references away and score with logvmamba evaluate later"
            )
        work = partial(_check_reference, self._labels)
        pairs = [(images / f"{case}_0000{ending}", references[case]) for case in map(str, cases)]
        map_cases(work, pairs, processes=usable_cores(), text="references")

    # Where things are

    @property
    def _new(self) -> NewScans:
        assert self.request.new is not None, "asked for where there is nothing to predict"
        return self.request.new

    @property
    def configuration(self) -> str:
        if self.request.derived is not None:
            return self.request.derived.name
        return f"{self.request.configuration}_quick" if self.request.quick else self.request.configuration

    @property
    def _plans_option(self) -> list[str]:
        return [] if self.request.plans == PLANS else ["-p", self.request.plans]

    def model(self, trainer: str) -> Path:
        """Folder of a trained model."""
        return self.results / self.dataset / f"{trainer}__{self.request.plans}__{self.configuration}"

    def _target(self, trainer: str) -> Path:
        predictions = self._new.predictions
        return predictions / trainer if len(self.request.trainers) > 1 else predictions

    def _predicted_by(self, trainer: str) -> dict:
        return {
            "images": str(self._new.images.resolve()),
            "model": self.model(trainer).name,
            "dataset": self.dataset,
            "folds": sorted(self.request.folds),
            "scans": self._scans,
        }

    @cached_property
    def _labels(self) -> Labels:
        return labels_of(self.dataset_json, str(self.raw / self.dataset / "dataset.json"))

    @cached_property
    def _scans(self) -> dict[str, str]:
        """SHA-256 of every scan: a folder may be moved or mounted elsewhere, and stays what it is."""
        files = sorted(self._new.images.glob(f"*{self.dataset_json['file_ending']}"))
        return {path.name: digest_of(path) for path in files}

    @staticmethod
    def _record(target: Path) -> tuple[dict, bool]:
        """What was to be predicted into a folder, nothing if nobody knows, and whether that was finished."""
        try:
            content = json.loads((target / PREDICTED_BY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}, False
        return (content, content.pop("finished", False)) if isinstance(content, dict) else ({}, False)

    def _plans(self) -> dict | None:
        file = self.preprocessed / self.dataset / f"{self.request.plans}.json"
        if not file.is_file():
            if self.request.plans != PLANS:
                raise no_such_plans(file)
            return None
        plans = read_json(file, "remove it, and the data set is planned anew")
        configurations_of(plans, file)
        return plans

    # What is due

    def steps(self, *, dry_run: bool = False) -> Iterator[Step]:
        """Give one step after the other; each is decided upon once those before it were run.

        Args:
            dry_run: Nothing is run between the steps, so what is not there yet is left open.
        """
        yield from self._preparation(dry_run=dry_run)
        for trainer in self.request.trainers:
            for fold in self.request.folds:
                yield self._training(trainer, fold, dry_run=dry_run)
            if self.request.new is not None:
                yield from self._prediction(trainer, dry_run=dry_run)
            for fold in self.request.folds:
                yield from self._scores_and_page(trainer, fold)
        if len({runs.method_of(trainer, "", "") for trainer in self.request.trainers}) > 1:
            models = [str(self.model(trainer)) for trainer in self.request.trainers]
            folds = ["--folds", *compared_folds(self.request.folds)]
            yield Step("compare the trainers", ("logvmamba", "compare", *models, *folds))
            if self.request.new is not None and self.request.new.references is not None:
                predictions = [str(self._target(trainer)) for trainer in self.request.trainers]
                yield Step("compare the predictions", ("logvmamba", "compare", *predictions))

    def steps_due(self) -> dict[str, int]:
        """Give the trainers that still have to train, each with the steps that one of its trainings takes."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        plans, configured = self._plans(), {}
        if plans is not None and self.configuration in plans["configurations"]:
            manager = PlansManager(plans).get_configuration(self.configuration)
            configured = check_training_settings(manager.configuration.get(TRAINING_KEY))
        found = {}
        for trainer in self.request.trainers:
            trainings = [self._training(trainer, fold, dry_run=True) for fold in self.request.folds]
            if all(step.finished is not None or "--val" in step.command for step in trainings):
                continue
            # A configuration says nothing to nnU-Net's own trainers, of which a name may.
            ours = configured if hasattr(find_trainer(trainer), "named_epochs") else {}
            schedule, named = {**NNUNETS_SCHEDULE, **ours}, re.search(r"_(\d+)epochs?(?:_|$)", trainer)
            epochs = int(named[1]) if named else schedule["num_epochs"]
            found[trainer] = epochs * schedule["num_iterations_per_epoch"]
        return found

    def _preparation(self, *, dry_run: bool) -> Iterator[Step]:
        yield from self.preprocess([self.request.configuration], dry_run=dry_run)
        self._check_planned(self._plans())  # a small data set has no 3d_lowres
        if self.request.quick or self.request.derived is not None:
            yield self._configuration()

    def preprocess(self, bases: Sequence[str], *, dry_run: bool) -> Iterator[Step]:
        """Give the step that plans and preprocesses these configurations, which one process does at a time.

        nnU-Net begins by removing what is there.
        """
        step = self._preprocessing(bases)
        if dry_run or step.finished is not None:
            yield step
            return

        def waits(holder: Holder) -> None:
            print(f"\n# waiting for {holder}, which preprocesses {self.dataset}", flush=True)

        with claimed(self.preprocessed / self.dataset / PREPROCESSING_LOCK, waits=waits):
            step = self._preprocessing(bases)
            if step.finished is None:
                self._refuse_read(bases)
            yield step

    def _refuse_read(self, bases: Sequence[str]) -> None:
        """Refuse to preprocess anew what a training reads."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        plans = self._plans()
        if plans is None:
            due, gone = list(bases), {f"{PLANS}_{base}" for base in bases}
        else:
            due = [base for base in bases if not self._is_preprocessed(plans, base)]
            gone = {PlansManager(plans).get_configuration(base).data_identifier for base in due}
        for fold in sorted((self.results / self.dataset).glob("*__*__*/fold_*")):
            holder = holder_of(fold / runs.IN_USE)
            if holder is not None and self._data_of(fold.parent) in gone:
                raise UserError(
                    f"{', '.join(due)} would be preprocessed anew, since cases are missing, and {holder} reads what is "
                    f"there: wait until {fold} is trained, or end that"
                )

    def _data_of(self, model: Path) -> str | None:
        """Name of the preprocessed folder that a model is trained on, whatever its plans are called."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        _, name, configuration = model.name.split("__", 2)
        for file in (model / "plans.json", self.preprocessed / self.dataset / f"{name}.json"):
            if file.is_file():
                with suppress(RuntimeError, ValueError, KeyError):  # without this configuration
                    return PlansManager(str(file)).get_configuration(configuration).data_identifier
        return None

    def _preprocessing(self, bases: Sequence[str]) -> Step:
        """Plan, or preprocess those of the planned configurations that are not."""
        title, plans, cores = "plan and preprocess", self._plans(), usable_cores()
        bases = self._with_next_stages(plans, bases)
        processes = ["-np", str(cores)] if cores < 4 else []
        if plans is None:
            raw = self.raw / self.dataset / "dataset.json"
            check_to_train(self.dataset_json, raw, raw=True)  # as --verify_dataset_integrity does
            command = ["nnUNetv2_plan_and_preprocess", "-d", self.number, "-c", *bases, "--verify_dataset_integrity"]
            command += [*processes, "-npfp", str(cores)] if cores < 8 else []
            # The planner takes this variable for a number of threads, and torch refuses 0.
            zero = dict(os.environ).get("nnUNet_n_proc_DA") == "0"
            return Step(title, tuple(command), environment={"nnUNet_n_proc_DA": "1"} if zero else {})
        due = [base for base in bases if not self._is_preprocessed(plans, base)]
        if not due:
            return Step(title, finished=f"{len(self.cases)} cases are preprocessed for {', '.join(bases)}")
        words = ("nnUNetv2_preprocess", "-d", self.number, "-plans_name", self.request.plans, "-c", *due, *processes)
        return Step(title, words)

    @staticmethod
    def _with_next_stages(plans: dict | None, bases: Sequence[str]) -> list[str]:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from nnunet_logvmamba.plugin.plans import next_stages

        found = list(bases)
        for base in bases:
            found += next_stages(PlansManager(plans), base) if plans else ["3d_fullres"] * (base == "3d_lowres")
        return list(dict.fromkeys(found))

    def _is_preprocessed(self, plans: dict, configuration: str) -> bool:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        identifier = PlansManager(plans).get_configuration(configuration).data_identifier
        folder = self.preprocessed / self.dataset
        done = {path.stem for path in (folder / identifier).glob("*.pkl")}  # written last of a case
        truths = {path.name for path in (folder / COPIED_LABELS).glob("*")}
        ending = self.dataset_json["file_ending"]
        return all(case in done and f"{case}{ending}" in truths for case in self.cases)

    def _configuration(self) -> Step:
        title, base, plans = f"write {self.configuration}", self.request.configuration, self._plans()
        if plans is not None and self.configuration in plans["configurations"]:
            return Step(title, finished=f"the plans have {self.configuration}")
        command = ["logvmamba", "plans", "-d", self.number, "-c", base, "--name", self.configuration]
        if self.request.derived is not None:
            return Step(title, (*command, *self._plans_option, *self.request.derived.options))
        patch = ["PATCH"]  # before planning, in a dry run
        if plans is not None:
            patch = list(map(str, quick_patch(plans, base)))
        settings = [f"{name}={value}" for name, value in QUICK.items()]
        command += ["--keep-network", "--batch-size", str(QUICK_BATCH), "--patch-size", *patch, "--train", *settings]
        return Step("a short schedule", tuple(command))

    def _training(self, trainer: str, fold: str, *, dry_run: bool) -> Step:
        title, folder = f"train {trainer} fold {fold}", self.model(trainer) / f"fold_{fold}"
        command = ["nnUNetv2_train", self.number, self.configuration, fold, "-tr", trainer, *self._plans_option]
        command += ["-device", self.device]
        command += ["-num_gpus", str(self.request.num_gpus)] if self.request.num_gpus > 1 else []
        final, summary = folder / "checkpoint_final.pth", folder / "validation" / "summary.json"
        if final.is_file() and not runs.is_under_way(folder) and (dry_run or damage_of(final) is None):
            if runs.is_finished(folder) and (dry_run or _json_in(summary) is not None):
                return Step(title, finished=f"it is trained and validated: {folder}")
            return Step(title, (*command, "--val"))
        begun = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
        if begun and not dry_run and not hasattr(find_trainer(trainer), "named_epochs"):
            _refuse_damaged(begun)
        return Step(title, (*command, *["--c"] * bool(begun)))

    def _is_trained(self, trainer: str, fold: str) -> bool:
        return self._training(trainer, fold, dry_run=True).finished is not None

    def _prediction(self, trainer: str, *, dry_run: bool) -> Iterator[Step]:
        request, new, target = self.request, self._new, self._target(trainer)
        title = f"predict with {trainer}"
        trained = [self.model(trainer) / f"fold_{fold}" / "checkpoint_final.pth" for fold in request.folds]
        wanted, staged = self._predicted_by(trainer), target / UNFINISHED
        finished = Step(title, finished=f"{self.new_cases} case(s) are predicted: {target}")

        def predict() -> Iterator[Step]:
            self._check_target(trainer)  # by now
            if self._is_predicted(target, wanted, trained):
                yield finished
                return
            self._refuse_to_predict_over_others(trainer)
            command = ["nnUNetv2_predict", "-i", new.images, "-o", staged, "-d", self.number]
            command += ["-c", self.configuration, "-f", *request.folds, "-tr", trainer, *self._plans_option]
            command += ["-device", self.device]
            command += ["-npp", "1", "-nps", "1"] if usable_cores() < 4 else []
            step = Step(title, tuple(map(str, command)), checkpoints=tuple(trained))
            if self._is_whole(staged, wanted, trained):
                yield Step(title, finished=f"{self.new_cases} case(s) are predicted, and move from {staged}")
            else:
                yield from self._staging(step, staged, wanted) if not dry_run else [step]
            if not dry_run:
                self._publish(target, trainer)

        def waits(holder: Holder) -> None:
            print(f"\n# waiting for {holder}, which predicts into {target}", flush=True)

        done = self._is_predicted(target, wanted, trained)  # reads all weights, so it is asked once
        if not done and not dry_run:
            lacking = [path for path in trained if not path.is_file()]
            if lacking:
                raise UserError(f"{lacking[0]} is not there, so nothing can be predicted with it: train that fold anew")
        writes = not dry_run and (not done or new.references is not None)
        with claimed(target / PREDICTION_LOCK, waits=waits) if writes else nullcontext():
            if done:
                yield finished
            else:
                yield from predict()
            if new.references is not None:
                yield from self._scores_of_predictions(trainer, new.references, dry_run=dry_run)

    def _staging(self, step: Step, staged: Path, wanted: dict[str, Any]) -> Iterator[Step]:
        """Predict into an empty folder, and say there what it is once it is whole."""
        target = staged.parent
        _write_record(target, {**self._record(target)[0], **wanted, "finished": False})
        if staged.exists():
            shutil.rmtree(staged)
        staged.mkdir()
        content = {**wanted, "weights": _weights(step.checkpoints)}
        with suppress(UserError):  # of a damaged record, which predictions can do without
            content[RECORD_NAME] = read_record(step.checkpoints[0].parent)
        yield step
        ending = self.dataset_json["file_ending"]
        masks = {path.name: digest_of(path) for path in sorted(staged.glob(f"*{ending}"))}
        _write_record(staged, {**content, "masks": masks, "finished": True})

    def _is_whole(self, staged: Path, wanted: dict, trained: Sequence[Path]) -> bool:
        """Whether a prediction that ended well waits there, or some of it, where the rest has gone to its place."""
        content, finished = self._record(staged)
        if not finished or content["scans"] != wanted["scans"] or not all(path.is_file() for path in trained):
            return False

        def is_there(name: str, digest: str) -> bool:
            moved = staged.parent / name
            return (staged / name).is_file() or (moved.is_file() and digest_of(moved) == digest)

        masks = content["masks"].items()
        all_there = len(masks) >= self.new_cases and all(is_there(*mask) for mask in masks)
        return all_there and content["weights"] == _weights(trained)

    def _publish(self, target: Path, trainer: str) -> None:
        """Move what was predicted to its place, unless a mask here or there is somebody's.

        Meanwhile the record has the digests of the masks that come and of those that go, since it may be killed.
        """
        staged, before = target / UNFINISHED, self._record(target)[0]
        content, _ = self._record(staged)
        new = content["masks"]
        self._refuse_others(staged, new, f"and would be kept as that of {trainer}")
        replaced = self._refuse_others(target, new, f"and stays (what was predicted lies in {staged})", new)
        content["masks"] = {**before.get("masks", {}), **new}
        files = sorted(path for path in staged.iterdir() if path.is_file() and path.name != PREDICTED_BY)
        (target / SCORED_AGAINST).unlink(missing_ok=True)
        _write_record(target, {**before, "masks": content["masks"], "replaced": replaced, "finished": False})
        move_into(target, files)
        _write_record(target, {**content, "finished": True})
        shutil.rmtree(staged)

    def _refuse_to_predict_over_others(self, trainer: str) -> None:
        ending = self.dataset_json["file_ending"]
        names = {f"{scan[: -len('_0000' + ending)]}{ending}" for scan in self._scans}
        self._refuse_others(self._target(trainer), sorted(names), "and would be predicted anew")

    def _refuse_others(
        self, target: Path, names: Iterable[str], why: str, new: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Give the digests of those of some masks that are there.

        Args:
            target: Folder of the masks.
            names: Of the masks.
            why: What would become of them.
            new: Digests of masks that are to replace them, and may be there already.

        Raises:
            UserError: If one is not as it was predicted, or nobody knows that it was, as of one by a reader's hand.
        """
        found = {name: digest_of(target / name) for name in names if (target / name).is_file()}
        record = self._record(target)[0]
        predicted = record.get("masks", {})
        for name, digest in found.items():
            if digest in [digests.get(name) for digests in (predicted, record.get("replaced", {}), new or {})]:
                continue
            changed = "was changed after it had been predicted"
            unknown = f"is no mask that {PREDICTED_BY} lists as predicted"
            raise UserError(
                f"{target / name} {changed if name in predicted else unknown}, {why}: name another folder, or move it "
                "away"
            )
        return found

    def _scores_of_predictions(self, trainer: str, references: Path, *, dry_run: bool) -> Iterator[Step]:
        """Score anew where the predictions or the references are others than those that were scored."""
        target = self._target(trainer)
        scored_against, wanted = target / SCORED_AGAINST, self._reference_digests
        words = ("logvmamba", "evaluate", str(target), str(references), "--predicted-only")
        sources = [target / PREDICTED_BY] if _json_in(scored_against) == wanted else None
        step = _scoring(f"score the predictions of {trainer}", words, target / SCORES, sources)
        if step.finished is None:
            masks = self._record(target)[0].get("masks", {})
            self._refuse_others(target, masks, f"and would be scored as that of {trainer}")
        yield step
        if not dry_run and step.finished is None:
            replace_text(scored_against, json.dumps(wanted, indent=1) + "\n")

    @cached_property
    def _reference_digests(self) -> dict[str, str]:
        references = self._new.references
        assert references is not None
        return {path.name: digest_of(path) for path in find_cases(references).values()}

    def _is_predicted(self, target: Path, wanted: dict, trained: Sequence[Path]) -> bool:
        """Whether all scans are predicted with the weights that are there."""
        there, finished = self._record(target)
        if finished is not True or there.get("scans", wanted["scans"]) != wanted["scans"]:
            return False
        if len(list(target.glob(f"*{self.dataset_json['file_ending']}"))) < self.new_cases:
            return False
        if not any(path.is_file() for path in trained):  # they are gone, what they made is there
            return _what_differs(there, wanted) is None
        if not all(path.is_file() for path in trained):
            return False
        if "weights" in there:
            return there["weights"] == _weights(trained)
        return is_newer(target / PREDICTED_BY, trained)  # a record of before there were digests

    def _scores_and_page(self, trainer: str, fold: str) -> Iterator[Step]:
        folder = self.model(trainer) / f"fold_{fold}"
        validation = folder / "validation"
        truths = self.preprocessed / self.dataset / "gt_segmentations"
        # Positions are nnU-Net's own, which writes predictions with the header of the image.
        words = ["logvmamba", "evaluate", str(validation), str(truths), "--predicted-only", "--ignore-position"]
        words += ["--reorient"] * self._reorients()
        summary = [validation / "summary.json"]
        yield _scoring(f"score the validation of {trainer} fold {fold}", tuple(words), folder / "scores", summary)
        title, page = f"report about {trainer} fold {fold}", folder / "report.html"
        if is_newer(page, summary):
            yield Step(title, finished=f"it is written: {page}")
        else:
            yield Step(title, ("logvmamba", "report", str(folder)))

    def _reorients(self) -> bool:
        """Whether nnU-Net's reader turns every file; before there are plans, only dataset.json may say so."""
        plans = self._plans() or {}
        reader = plans.get("image_reader_writer") or self.dataset_json.get("overwrite_image_reader_writer")
        return "Reorient" in str(reader)

    def outcome(self) -> list[tuple[str, Path]]:
        """What there is to look at, and where."""
        found = []
        for trainer in self.request.trainers:
            for fold in self.request.folds:
                folder = self.model(trainer) / f"fold_{fold}"
                found += [("report", folder / "report.html"), ("scores of the validation", folder / "scores")]
            if self.request.new is not None:
                found.append(("predictions", self._target(trainer)))
        return found

    @property
    def logs(self) -> Path:
        """Folder of what the commands printed."""
        return self.results / self.dataset / "run_logs"


def compared_folds(folds: Sequence[str]) -> list[str]:
    """Give those of the folds that a comparison is over: ``all`` was validated on what it was trained on."""
    return [fold for fold in folds if fold != "all"] or list(folds)


def _refuse_damaged(checkpoints: Sequence[Path]) -> None:
    """Refuse to go on from a damaged checkpoint with nnU-Net's own trainers, which take the first that is there."""
    damage = damage_of(checkpoints[0])
    if damage is not None:
        then = f"goes on from {checkpoints[1].name}" if len(checkpoints) > 1 else "begins anew"
        raise UserError(f"{checkpoints[0]} is damaged ({damage}): remove it, and the training {then}")


def _scoring(title: str, words: tuple[str, ...], target: Path, sources: Sequence[Path] | None = None) -> Step:
    """Give the step that scores; it is finished if that was done after the sources were written; None if never."""
    if sources is not None and is_newer(target / "scores.json", sources):
        return Step(title, finished=f"it is scored: {target}")
    return Step(title, (*words, "--output", str(target), *["--overwrite"] * target.exists()))


def _what_differs(there: dict, wanted: dict) -> str | None:
    """Say why a record is not of the predictions that are wanted; None if it is.

    Where the scans lie does not matter unless the record does not know them.
    """
    names = [key for key in wanted if key != "scans" and not (key == "images" and isinstance(there.get("scans"), dict))]
    for key in names:
        if key in there and there[key] != wanted[key]:
            return f"; {key}: {there[key]}, not {wanted[key]}"
    if any(key not in there for key in names):
        return ""
    for name, digest in there.get("scans", {}).items():
        if name not in wanted["scans"]:
            return f"; scan {name} is not in {wanted['images']}"
        if wanted["scans"][name] != digest:
            return f"; scan {name} is another one in {wanted['images']}"
    return None


def _write_record(target: Path, content: Mapping[str, Any]) -> None:
    replace_text(target / PREDICTED_BY, json.dumps(content, indent=1) + "\n")


def _json_or_word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _json_in(path: Path) -> Any:
    """What a file holds; None if it is not there or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _weights(files: Sequence[Path]) -> dict[str, str]:
    return {path.parent.name: digest_of(path) for path in files}


def digest_of(path: Path) -> str:
    """Give the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_newer(path: Path, sources: Sequence[Path]) -> bool:
    """Whether a file is there and no source was written after it."""
    there = path.is_file() and all(source.is_file() for source in sources)
    return there and all(source.stat().st_mtime_ns <= path.stat().st_mtime_ns for source in sources)


def quick_patch(plans: dict, configuration: str) -> list[int]:
    """Shrink the planned patch, keeping its proportions, to ``QUICK_VOXELS``.

    Every axis stays a multiple of the network's strides and, where it was, of at least twice their product. A network
    without strides takes any patch, one that is built for a patch takes that alone.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans).get_configuration(configuration)
    planned = list(map(int, manager.patch_size))
    arguments = manager.network_arch_init_kwargs
    if "patch_size" in arguments:
        return planned
    strides = arguments.get("strides", [_STEP])
    steps = [
        prod(stage[axis] if isinstance(stage, Sequence) else stage for stage in strides) for axis in range(len(planned))
    ]
    patch = list(planned)
    while prod(patch) > QUICK_VOXELS[len(patch)]:
        longer = [axis for axis in range(len(patch)) if patch[axis] >= 3 * steps[axis]]
        if not longer:
            break
        axis = max(longer, key=lambda axis: patch[axis] / planned[axis])
        patch[axis] -= steps[axis]
    return patch


def nnunet_folders() -> tuple[Path, Path, Path]:
    """Give nnU-Net's three folders, raw, preprocessed and results."""
    missing = [name for name in VARIABLES if not os.environ.get(name, "").strip()]
    if missing:
        exports = " ".join(f"{name}=~/nnunet/{name.removeprefix('nnUNet_')}" for name in missing)
        raise UserError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set, so nnU-Net does not know its "
            f"folders; for example: export {exports}"
        )
    for name in VARIABLES:
        if (fault := not_written_out(name)) is not None:
            raise UserError(fault)
    raw, preprocessed, results = (Path(os.environ[name]) for name in VARIABLES)
    if not raw.is_dir():
        raise UserError(f"nnUNet_raw is {raw}, and there is no such folder: make it, and put the data set into it")
    return raw, preprocessed, results


def _is_copy(file: Path, other: str | Path) -> bool:
    return file.is_file() and filecmp.cmp(file, other, shallow=False)


def _same_labels(one: Path, other: Path) -> bool:
    """Whether two label maps are equal, however they are compressed."""
    if filecmp.cmp(one, other):  # reads them where size or time differ
        return True
    try:
        here, there = read_labels(one).values, read_labels(other).values
    except UserError:
        return False
    return here.shape == there.shape and bool((here == there).all())


def _check_reference(labels: Labels, pair: tuple[Path, Path]) -> None:
    """Refuse a reference that is none of its scan; the prediction will lie where the scan lies."""

    image, file = pair
    truth = read_labels(file)
    check_values(truth.values, labels, file)
    grid = read_grid(image)
    if grid is None:
        return
    scan = grid.shape
    if [size for size in scan if size > 1] != [size for size in truth.shape if size > 1]:
        raise UserError(f"{file} has the shape {truth.shape}, but its scan {image} has {scan}")
    try:
        check_same_grid(truth, turned_like(grid, truth), file, image)
    except UserError as error:
        raise UserError(f"{error}; correct the reference, or leave --references away") from error


def _number(dataset: str) -> str:
    """``4`` of ``Dataset004_Hippocampus``."""
    return str(int(dataset.partition("_")[0].removeprefix("Dataset")))


def find_dataset(text: str, raw: Path) -> str:
    """Name of the one data set that is meant."""
    found = sorted(path.name for path in raw.iterdir() if path.is_dir() and re.match(r"Dataset\d{3,}_.", path.name))
    if text.isdecimal():
        # nnU-Net looks for names that begin so, and would also take Dataset1001 for 100.
        chosen = [name for name in found if name.startswith(f"Dataset{int(text):03d}")]
        exact = [name for name in chosen if name.startswith(f"Dataset{int(text):03d}_")]
    else:
        chosen = exact = [name for name in found if name == text]
    if len(chosen) > 1 and exact:
        raise UserError(f"{raw} has {' and '.join(chosen)}, which nnU-Net mixes up: rename or move all but one")
    if exact:
        return exact[0]
    there = f"there are {', '.join(found)}" if found else "there is none"
    if not text.isdecimal() and not text.startswith("Dataset"):
        raise UserError(
            f"'{text}' is neither the number nor the name of a data set: {LAYOUT}, and {there}; name its number, e.g. "
            + (_number(found[0]) if found else "123")
        )
    raise UserError(f"{raw} has no data set {text} ({there}): {LAYOUT}")


def read_raw(folder: Path) -> tuple[dict, dict[str, list[str]]]:
    """Content of ``dataset.json``, and the images of every labelled case."""
    content, listed = read_layout(folder)
    return content, {case: images for case, (images, _) in listed.items()}


def read_layout(folder: Path) -> tuple[dict, dict[str, tuple[list[str], str]]]:
    """Content of ``dataset.json``; images and label map of every case, as nnU-Net finds them.

    Raises:
        UserError: If the layout is not nnU-Net's.
    """
    file = folder / "dataset.json"
    if not file.is_file():
        raise UserError(f"{folder} has no dataset.json: {LAYOUT}")
    content = runs.read_json(file)
    ending = content.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise UserError(f"{file} names no 'file_ending' such as .nii.gz: correct it there")
    if "dataset" not in content:
        for name in ("imagesTr", "labelsTr"):
            if not (folder / name).is_dir():
                raise UserError(f"{folder} has no folder {name}: {LAYOUT}")
    check_to_train(content, file)
    listed = _listed_in(content, folder) if "dataset" in content else _found_in(folder, ending)
    if not listed:
        raise UserError(f"{folder / 'imagesTr'} holds no image <case>_0000{ending}: {LAYOUT}")
    unlabelled = [label for _, label in listed.values() if not Path(label).is_file()]
    if unlabelled:
        raise UserError(f"{unlabelled[0]} is missing; {len(unlabelled)} of {len(listed)} image(s) have no label there")
    return content, listed


def reader_of(content: dict, example: str) -> type:
    """The class with which nnU-Net reads the images of a data set.

    Args:
        content: Of ``dataset.json``.
        example: One of the images, which nnU-Net's readers try.

    Raises:
        UserError: If none takes it.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    try:
        with redirect_stderr(io.StringIO()):  # nnU-Net shows why a reader does not take the file
            return determine_reader_writer_from_dataset_json(content, example, verbose=False)
    except RuntimeError as error:
        raise UserError(f"{example} can be read by none of nnU-Net's readers: replace it") from error


def _listed_in(content: dict, folder: Path) -> dict[str, tuple[list[str], str]]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets  # late, because it imports NumPy

    listed = get_filenames_of_train_images_and_targets(str(folder), content)
    return {str(case): (files["images"], files["label"]) for case, files in listed.items()}


def _found_in(folder: Path, ending: str) -> dict[str, tuple[list[str], str]]:
    """Find cases by their names; nnU-Net's own search compares every file with every case, in twelve processes."""
    listed: dict[str, tuple[list[str], str]] = {}
    for path in sorted((folder / "imagesTr").glob(f"*{ending}")):
        found = re.fullmatch(r"(.*)_\d{4}", path.name.removesuffix(ending))
        if not found:
            raise UserError(f"{path} has no channel number: name images <case>_0000{ending}, its label <case>{ending}")
        images, _ = listed.setdefault(found[1], ([], str(folder / "labelsTr" / f"{found[1]}{ending}")))
        images.append(str(path))
    return dict(sorted(listed.items()))


def device_here(asked: str) -> str:
    """Give the device that is meant by ``--device``, ``auto`` among them.

    Raises:
        UserError: If torch sees none such on this machine.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[asked]:
        raise UserError(
            f"--device {asked}: torch sees no such device here (logvmamba doctor says what it sees): use cpu"
        )
    return asked


# --- Running ----------------------------------------------------------------------------------------------------------


class StepFailed(UserError):
    """A command ended with another exit code than 0; ``log`` has what it said."""

    def __init__(self, sentence: str, log: Path, code: int):
        super().__init__(sentence)
        self.log, self.code = log, code

    @property
    def last_words(self) -> str:
        """The last line that the command said, or which signal killed it."""
        if self.code < 0:
            return f"it was killed by signal {-self.code}"
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")


def run_steps(
    steps: Iterable[Step],
    logs: Path,
    *,
    dry_run: bool = False,
    show: Callable[[str], None] = print,
    show_command: Callable[[str], None] = print,
    shown: Mapping[str, str] | None = None,
) -> None:
    """Show one step after the other, and run those that are due; see :func:`execute`.

    Args:
        dry_run: Run none.
        show: Prints text.
        show_command: Prints a command.
    """
    with closing(steps) if isinstance(steps, Generator) else nullcontext():  # lets go of what it holds, now
        for step in steps:
            if step.finished is not None:
                show(f"\n# {step.title}: skipped, {step.finished}")
                continue
            show(f"\n# {step.title}")
            show_command(f"$ {step.typed}")
            sys.stdout.flush()  # before the command writes to the same terminal
            if not dry_run:
                execute(step, logs, shown)


def execute(step: Step, logs: Path, shown: Mapping[str, str] | None = None) -> None:
    """Run a command, show what it prints, and keep that in a log; an interrupt ends it with all its processes.

    Args:
        step: The command.
        logs: Folder of the log.
        shown: Further variables for it, about how it is shown.

    Raises:
        StepFailed: If it ends with another exit code than 0.
        UserError: Before it runs, if a checkpoint that it reads is damaged or holds more than data.
    """
    for checkpoint in step.checkpoints:
        read_checkpoint(checkpoint)
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{re.sub(r'[^A-Za-z0-9]+', '_', step.title)}.log"
    program, *words = step.command
    beside = str(Path(sys.executable).parent)
    found = shutil.which(program, path=os.pathsep.join((beside, os.environ.get("PATH", ""))))
    if found is None:
        raise UserError(f"there is no command {program} beside {sys.executable}: install the package again")
    environment = {**os.environ, **step.environment, **(shown or {}), "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as kept:
        kept.write(f"# {time.strftime('%Y-%m-%d %H:%M:%S')}\n$ {step.typed}\n".encode())
        process = None
        try:
            with put_off(), kept_to_ourselves():
                process = subprocess.Popen(
                    [found, *words],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that all its workers can be ended with it
                )
            assert isinstance(process.stdout, io.BufferedReader)
            for chunk in iter(partial(process.stdout.read1, 65536), b""):
                kept.write(chunk)
                kept.flush()
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            code = process.wait()
        finally:
            if process is not None:
                _end(process)
    if code:
        raise StepFailed(
            f"the step '{step.title}' ended with exit code {code}, and those after it were not run: {log} has what it "
            "said; once that is put right, the same command goes on from here",
            log,
            code,
        )


def _end(process: subprocess.Popen) -> None:
    """End a command that was interrupted: politely, so that ours clean up behind them, then at once."""
    if process.stdout is not None:
        process.stdout.close()
    if process.returncode is not None:
        return
    if hasattr(os, "killpg"):
        # Its number is not free, and so its group nobody else's, before it is waited for.
        try:
            os.killpg(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and not _has_ended(process.pid):
                time.sleep(0.05)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # workers whose parent is gone, too
    else:
        process.kill()
    process.wait()


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
