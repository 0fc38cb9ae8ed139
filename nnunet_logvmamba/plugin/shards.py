"""Prediction of a folder of scans in shards, each a command of its own; what comes out is whole or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_logvmamba.cores import usable_cores
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import read_labels
from nnunet_logvmamba.files import move_into, replace_text
from nnunet_logvmamba.plugin.first_run import PREDICTED_BY, Step, StepFailed, digest_of, run_steps
from nnunet_logvmamba.results import runs

STAGED = ".shards"
"""Folder in the target where the shards lie until all of them are there."""


@dataclass(frozen=True)
class Shards:
    """Scans to predict with a trained model.

    Attributes:
        model: Results folder ``TRAINER__PLANS__CONFIGURATION``.
        folds: Those of its folds that predict together.
        number: Of shards.
        device: ``cpu``, ``cuda`` or ``mps``.
    """

    model: Path
    images: Path
    out: Path
    folds: tuple[str, ...]
    number: int
    device: str

    @property
    def staged(self) -> Path:
        return self.out / STAGED

    @property
    def logs(self) -> Path:
        return self.staged / "logs"

    @cached_property
    def ending(self) -> str:
        return runs.read_dataset_json(self.model)["file_ending"]

    @cached_property
    def cases(self) -> list[str]:
        """Cases in the order in which nnU-Net deals them out."""
        from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

        return list(map(str, get_identifiers_from_splitted_dataset_folder(str(self.images), self.ending)))

    @cached_property
    def record(self) -> dict[str, Any]:
        """What is predicted with what: digests, since folders may be moved."""
        weights = [self.model / f"fold_{fold}" / "checkpoint_final.pth" for fold in self.folds]
        return {
            "model": self.model.name,
            "folds": list(self.folds),
            "shards": self.number,
            "scans": {path.name: digest_of(path) for path in sorted(self.images.glob(f"*{self.ending}"))},
            "weights": {path.parent.name: digest_of(path) for path in weights},
        }

    # Before anything is run

    def check(self) -> None:
        """Refuse what cannot be predicted.

        Raises:
            UserError: In one sentence.
        """
        from nnunet_logvmamba.plugin.acceptance import check_images, read_model
        from nnunet_logvmamba.plugin.model_check import check_model

        model = read_model(self.model)
        if not self.model.parent.name.startswith("Dataset") or len(self.model.name.split("__")) != 3:
            raise UserError(
                f"{self.model} is no results folder DatasetNNN_NAME/TRAINER__PLANS__CONFIGURATION, as nnUNetv2_predict "
                "wants it"
            )
        self._check_configuration()
        lacking = [fold for fold in self.folds if not (self.model / f"fold_{fold}" / "checkpoint_final.pth").is_file()]
        if lacking or not self.folds:
            raise UserError(
                f"{self.model} has no checkpoint_final.pth of fold {', '.join(lacking) or '0'}: finish its training, "
                "or name other folds"
            )
        check_model(self.model, classes=False)
        check_images(self.images, model, processes=usable_cores())
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out} is a file; name a folder to write to")
        there = self._there()
        if there is None and self.out.is_dir() and any(self.out.iterdir()):
            raise UserError(f"{self.out} is not empty, and nothing of this prediction: name a new folder")
        differing = [key for key in self.record if there is not None and there.get(key) != self.record[key]]
        if differing:
            raise UserError(
                f"{self.out} holds another prediction (its {' and '.join(differing)} differ): name a new folder, or "
                "remove it"
            )

    def _check_configuration(self) -> None:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        file, name = self.model / "plans.json", self.model.name.split("__")[2]
        try:
            previous = PlansManager(runs.read_json(file)).get_configuration(name).previous_stage_name
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"{file} has no configuration '{name}' as nnU-Net wants it ({error})") from error
        if previous is not None:
            raise UserError(
                f"{self.model} is the second stage of a cascade, for which nnU-Net needs predictions of the first: "
                f"predict with {previous}, then with nnUNetv2_predict -prev_stage_predictions"
            )

    def _there(self) -> dict[str, Any] | None:
        """The record of what lies in the target, None if nobody knows."""
        for file in (self.out / PREDICTED_BY, self.staged / PREDICTED_BY):
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(content, dict):
                return content
        return None

    @property
    def is_done(self) -> bool:
        """Whether all cases are predicted."""
        return (self.out / PREDICTED_BY).is_file()

    def begin(self, numbers: Sequence[str] = ()) -> None:
        """Write down what is predicted, and the numbers of its jobs in the queue."""
        self.staged.mkdir(parents=True, exist_ok=True)
        self._write({"jobs": list(numbers), "moving": self.is_moving})

    def _write(self, more: dict[str, Any]) -> None:
        replace_text(self.staged / PREDICTED_BY, json.dumps({**self.record, **more}, indent=1) + "\n")

    @property
    def jobs_begun(self) -> list[str]:
        """Numbers of the jobs in the queue that were begun last."""
        return (self._there() or {}).get("jobs", [])

    @property
    def is_moving(self) -> bool:
        """Whether a gathering has begun to move masks to their place; before it, those there are somebody's."""
        return self.is_done or bool((self._there() or {}).get("moving"))

    # Running

    def missing(self, shard: int) -> list[str]:
        """Cases of a shard that are not predicted, or not whole."""
        cases, folders = self.cases[shard :: self.number], self._folders(shard)
        return [case for case in cases if not any(_is_whole(folder / f"{case}{self.ending}") for folder in folders)]

    def written(self, shard: int) -> int:
        """How many files there are of a shard's cases, whole or not."""
        cases, folders = self.cases[shard :: self.number], self._folders(shard)
        return sum((folder / f"{case}{self.ending}").is_file() for case in cases for folder in folders)

    def _folders(self, shard: int) -> list[Path]:
        return [self.staged / str(shard), *[self.out] * self.is_moving]

    def due(self) -> list[int]:
        """Shards of which a case is missing."""
        return [shard for shard in range(self.number) if self.missing(shard)]

    def step(self, shard: int) -> Step:
        """Give the command of a shard, which does what is missing of it."""
        trainer, plans, configuration = self.model.name.split("__")
        words = ["nnUNetv2_predict", "-i", str(self.images), "-o", str(self.staged / str(shard))]
        words += ["-d", self.model.parent.name, "-tr", trainer, "-p", plans, "-c", configuration, "-f", *self.folds]
        words += ["-device", self.device, "-num_parts", str(self.number), "-part_id", str(shard)]
        words += ["--continue_prediction", *(["-npp", "1", "-nps", "1"] if usable_cores() < 4 else [])]
        environment = {"nnUNet_results": str(self.model.parent.parent)}
        return Step(f"shard {shard} of {self.number}", tuple(words), environment=environment)

    def predict(self, shard: int, **shown: Any) -> None:
        """Predict what is missing of a shard; half a file that a killed command left is removed before.

        Raises:
            UserError: If the command fails.
        """
        missing = self.missing(shard)
        for case in missing:
            (self.staged / str(shard) / f"{case}{self.ending}").unlink(missing_ok=True)
        if missing:
            run_steps([self.step(shard)], self.logs, **shown)

    def gather(self, **shown: Any) -> None:
        """Run once more what died, then move everything to its place.

        Raises:
            UserError: If cases are missing even so, or masks of others are in the place of some; nothing is moved.
        """
        self._refuse_others()
        for shard in self.due():
            try:
                self.predict(shard, **shown)
            except StepFailed as error:
                shown.get("show", print)(f"{error}")
        lacking = [case for shard in range(self.number) for case in self.missing(shard)]
        if lacking:
            named = ", ".join(lacking[:10]) + (", …" if len(lacking) > 10 else "")
            raise UserError(
                f"{len(lacking)} of {len(self.cases)} case(s) are missing: {named}; {self.logs} has what the shards "
                f"said, {self.out} is written once all are there, and the same command does the rest"
            )
        self._refuse_others()  # by now
        self._write({"jobs": self.jobs_begun, "moving": True})
        move_into(self.out, self._to_move())
        replace_text(self.out / PREDICTED_BY, json.dumps({**self.record, "finished": True}, indent=1) + "\n")
        shutil.rmtree(self.staged)

    def _refuse_others(self) -> None:
        paths = (self.out / f"{case}{self.ending}" for case in self.cases)
        for path in () if self.is_moving else paths:
            if path.exists():
                raise UserError(
                    f"{path} is not known to be predicted here and stays: move it away, and the same command does the "
                    "rest"
                )

    def _to_move(self) -> Iterator[Path]:
        for shard in range(self.number):
            folder = self.staged / str(shard)
            beside = {f"{case}.json" for case in self.cases}  # spacings of nnU-Net's TIFF files
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():  # more shards than cases
                if path.is_file() and (shard == 0 or path.name.endswith(self.ending) or path.name in beside):
                    yield path


def _is_whole(path: Path) -> bool:
    try:
        read_labels(path)
    except (UserError, OSError):
        return False
    return True


@dataclass(frozen=True)
class Shard:
    """What a job does: one shard, or, if it has no number, the gathering of all."""

    shards: Shards
    number: int | None = None

    def __call__(self) -> None:
        if self.number is None:
            self.shards.gather()
        else:
            self.shards.predict(self.number)

    def reached(self) -> str:
        """Describe how far it is: the text differs once more is predicted; no file is read, since time is nearly up."""
        numbers = range(self.shards.number) if self.number is None else [self.number]
        return f"{sum(self.shards.written(number) for number in numbers)} written"
