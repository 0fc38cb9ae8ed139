"""What a training was and what it cost, in ``logvmamba.json`` beside its checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_logvmamba import __version__
from nnunet_logvmamba.errors import Refused, UserError
from nnunet_logvmamba.files import FULL, replace_text
from nnunet_logvmamba.networks.counting import count_multiply_adds, count_parameters
from nnunet_logvmamba.plugin.environment import peak_memory_bytes, version_of
from nnunet_logvmamba.plugin.plans import SPLITS, check_folds
from nnunet_logvmamba.plugin.preprocessed_cases import cases_in
from nnunet_logvmamba.results.record import FORMAT, RECORD_NAME, read_record, without_paths

from .weights import bare_network


class RecordedTrainer(nnUNetTrainer):
    """nnU-Net's training, which also writes a record of itself into the folder of its fold.

    It is written when training starts and after every epoch, by rank 0, each time as a whole. A continued training
    keeps what the record says of earlier sessions. A record that cannot be written, or a network that cannot be
    counted, is said in the log and does not end a training of days.
    """

    recipe: Any = None
    seed: int | None = None
    _split: tuple | None = None

    def do_split(self):
        """Give nnU-Net's training and validation cases, and keep them for the record.

        Where there is no file of the folds yet, nnU-Net's own appears in one step, so that trainings that begin at the
        same time, as on a cluster, never read half of it.

        Raises:
            Refused: If the file cannot be made of so few cases or cannot be written, or if it is damaged, as nnU-Net
                leaves it when it is killed while it writes it.
        """
        file = Path(self.preprocessed_dataset_folder_base) / SPLITS
        if self.fold != "all" and not file.is_file():
            refuse_too_few_cases(Path(self.preprocessed_dataset_folder), file)
            home = self.preprocessed_dataset_folder_base
            with tempfile.TemporaryDirectory() as folder:
                self.preprocessed_dataset_folder_base = folder
                try:
                    super().do_split()
                finally:
                    self.preprocessed_dataset_folder_base = home
                _write_folds(file, (Path(folder) / file.name).read_text())
        try:
            self._split = super().do_split()
        except json.JSONDecodeError as error:
            raise Refused(
                f"{file} is not valid JSON ({error}): copy it anew, or remove it if the folds were nnU-Net's own."
            ) from error
        return self._split

    def on_train_start(self):
        """Start as nnU-Net does, then write what is known."""
        super().on_train_start()
        if self.local_rank == 0:
            self._record = {**_facts(self), **_sessions(self)}
            self._write_record(self._update_record)

    def on_epoch_end(self):
        """End the epoch as nnU-Net does, then bring the record up to date."""
        super().on_epoch_end()
        if self.local_rank == 0:
            self._write_record(self._update_record)

    def record_validation(self) -> None:
        """Note after how many epochs the network was validated, so that a training that was stopped early counts."""
        if (Path(self.output_folder) / RECORD_NAME).is_file():
            self._write_record(self._add_validation)

    def _add_validation(self) -> None:
        self._record = {**(read_record(Path(self.output_folder)) or {}), "validated_epochs": self.current_epoch}

    def _write_record(self, update: Callable[[], None]) -> None:
        try:
            update()
            replace_text(Path(self.output_folder) / RECORD_NAME, json.dumps(self._record, indent=1) + "\n")
        except Exception as error:  # whatever it is, it is not worth a training
            reason = (
                error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
            )
            self.print_to_log_file(
                f"{RECORD_NAME} could not be written ({reason}): the training goes on, but logvmamba compare and "
                f"report will not know what it cost."
            )

    def _update_record(self) -> None:
        starts, ends = (self.logger.get_value(f"epoch_{which}_timestamps", None) for which in ("start", "end"))
        seconds = [round(end - start, 3) for start, end in zip(starts, ends)]
        peak = peak_memory_bytes(self.device)
        if peak is not None:
            self._record["peak_memory_bytes"] = max(peak, self._record["peak_memory_bytes"] or 0)
        self._record.update(
            epochs_done=len(seconds),
            median_seconds_per_epoch=round(median(seconds), 3) if seconds else None,
            seconds_per_epoch=seconds,
        )


def refuse_too_few_cases(folder: Path, splits: Path) -> None:
    """Raise Refused where there is no file of the folds, and the cases of a folder are too few for nnU-Net's."""
    try:
        check_folds(len(cases_in(folder)), splits)
    except UserError as error:
        raise Refused(f"{error}.") from error


def _write_folds(file: Path, text: str) -> None:
    try:
        replace_text(file, text)
    except OSError as error:
        remedy = "make room" if error.errno in FULL else "begin a training once where it can be, or copy it there"
        raise Refused(
            f"{file}, the folds that nnU-Net makes, cannot be written ({error.strerror or error}): {remedy}."
        ) from error


def split_digest(training: Sequence[str], validation: Sequence[str]) -> str:
    """Give a short word that is the same for the same cases on the same sides, in whatever order."""
    text = json.dumps([sorted(map(str, training)), sorted(map(str, validation))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _facts(trainer: RecordedTrainer) -> dict:
    """What is known when training starts."""
    configuration = trainer.configuration_manager
    network = bare_network(trainer)
    return {
        "format": FORMAT,
        "trainer": type(trainer).__name__,
        "network": type(network).__name__,
        "dataset": trainer.plans_manager.dataset_name,
        "plans": trainer.plans_manager.plans_name,
        "configuration": trainer.configuration_name,
        "fold": trainer.fold,
        "seed": trainer.seed,
        "recipe": None if trainer.recipe is None else trainer.recipe.facts(),
        "epochs": trainer.num_epochs,
        "iterations_per_epoch": trainer.num_iterations_per_epoch,
        "validation_iterations_per_epoch": trainer.num_val_iterations_per_epoch,
        "patch_size": [int(size) for size in configuration.patch_size],
        "batch_size": int(configuration.batch_size),
        "spacing": [float(value) for value in configuration.spacing],
        "split": None if trainer._split is None else _described_split(*trainer._split),
        "parameters": count_parameters(network),
        "multiply_adds": _multiply_adds(trainer),
        "device": {
            "type": trainer.device.type,
            "name": torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else None,
            "count": torch.distributed.get_world_size() if trainer.is_ddp else 1,
            "threads": torch.get_num_threads(),
        },
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Give the versions of what a result depends on."""
    names = ("nnunetv2", "torch", "dynamic-network-architectures", "batchgeneratorsv2", "numpy", "numba", "triton")
    return {
        "nnunet_logvmamba": __version__,
        "python": platform.python_version(),
        **{name: version_of(name) for name in names},
        "cuda": torch.version.cuda,
        "system": platform.system(),
    }


def _described_split(training: Sequence[str], validation: Sequence[str]) -> dict:
    return {
        "training_cases": len(training),
        "validation_cases": len(validation),
        "digest": split_digest(training, validation),
    }


def _multiply_adds(trainer: RecordedTrainer) -> int | None:
    try:
        with torch.device("meta"):
            network = trainer.build_network_architecture(
                trainer.plans_manager,
                trainer.configuration_manager,
                trainer.num_input_channels,
                trainer.label_manager.num_segmentation_heads,
                False,
            )
        counts = count_multiply_adds(
            network.eval(), trainer.num_input_channels, trainer.configuration_manager.patch_size
        )
    except Exception as error:  # a network of the user that cannot run without data may raise anything
        reason = f"{str(error).strip().splitlines()[0]} " if str(error).strip() else ""
        trainer.print_to_log_file(
            f"The multiply-adds of this network could not be counted: {reason}({type(error).__name__})"
        )
        return None
    return counts[""]


def _sessions(trainer: RecordedTrainer) -> dict:
    """The commands so far, this one last, and the peak memory of earlier ones."""
    before: dict = {}
    if trainer.current_epoch > 0:
        try:
            before = read_record(Path(trainer.output_folder)) or {}
        except (OSError, ValueError) as error:
            trainer.print_to_log_file(f"What was recorded before this training was continued is lost: {error}")
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    program = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    session = {"command": without_paths(program), "first_epoch": trainer.current_epoch, "started": now}
    return {"sessions": [*before.get("sessions", []), session], "peak_memory_bytes": before.get("peak_memory_bytes")}
