"""A training keeps numbers that are not finite out of its weights and files, and says where they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from torch import distributed, nn

from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.plugin import preprocessed_cases
from nnunet_logvmamba.plugin.checkpoints import is_mask
from nnunet_logvmamba.plugin.plans import SETTINGS
from nnunet_logvmamba.plugin.preprocessed_cases import MEND

from .recording import RecordedTrainer
from .weights import bare_network

_NAMED_CASES = 3

LEAST_SCALE = 1.0
"""Of a gradient scaler, which halves it for every overflow; gradients are multiplied by its inverse."""

LOWER = (
    "continue with --c; if it comes again, lower the learning rate (logvmamba plans --keep-network --name NEW --train "
    "optimizer=... initial_lr=...) and train NEW with -pretrained_weights, the last checkpoint, and a trainer whose "
    "name has no recipe"
)


class FiniteTrainer(RecordedTrainer):
    """Training whose cases, steps and checkpoints are checked for numbers that are not finite.

    Preprocessed cases are looked through once before the first epoch. A step whose loss or gradients are not finite is
    never applied: the optimizer leaves weights and its own state as they are, and the log says so. ``non_finite_steps``
    of them in a row end the training. Steps with a finite loss that a gradient scaler skips for an overflow of its own
    do not count, as long as its scale is above ``LEAST_SCALE``, below which it does not go: gradients that overflow
    there are not finite by themselves. A checkpoint with weights that are not finite is not written.

    Raises:
        Refused: In all these cases, with cases or modules by name.
    """

    non_finite_steps = SETTINGS["non_finite_steps"][1]
    """So many steps in a row end the training."""
    _iteration = 0
    _in_a_row = 0
    _left_out: frozenset[int] = frozenset()
    _unvalidated: str | None = None
    _applied = _rejected = False
    _best_ema: float | None

    def run_training(self):
        """Train as nnU-Net does; where a training is refused, its data loaders end with it and say nothing."""
        try:
            super().run_training()
        except Refused:
            for loader in (self.dataloader_train, self.dataloader_val):
                if isinstance(loader, NonDetMultiThreadedAugmenter):
                    loader._finish()
            raise

    def initialize(self):
        """Build as nnU-Net does, then watch loss and optimizer."""
        super().initialize()
        if isinstance(self.loss, nn.Module):
            self.loss.register_forward_hook(self._tell_gradients)
        self.optimizer.register_step_pre_hook(self._before_update)

    def get_tr_and_val_datasets(self):
        """Give nnU-Net's data sets once every case of theirs is sound."""
        datasets = super().get_tr_and_val_datasets()
        for dataset, purpose in zip(datasets, ("train on", "validate with")):
            if not dataset.identifiers:
                raise Refused(
                    f"Fold {self.fold} of splits_final.json has no case to {purpose}, without which nnU-Net cannot "
                    "train: put one there, or train the fold all, which takes every case for both."
                )
        cases = [case for dataset in datasets for case in dataset.identifiers]
        self.check_first_stage(cases)
        self._check_cases(cases)
        return datasets

    def check_first_stage(self, cases: Iterable[str] | None = None) -> None:
        """Refuse the second stage of a cascade where the validation of the first has not left all cases for it.

        Args:
            cases: Those that are needed; None means those of the validation.

        Raises:
            Refused: With the number of missing cases, the first of them and the folder.
        """
        if self.folder_with_segs_from_previous_stage is None:
            return
        cases = self.do_split()[1] if cases is None else cases
        folder = Path(self.folder_with_segs_from_previous_stage)
        there = {file.stem for file in folder.glob("*")}
        missing = sorted(set(cases) - there)
        if missing:
            number = self.plans_manager.dataset_name[len("Dataset") :].partition("_")[0]
            first = f"{number} {self.configuration_manager.previous_stage_name} all -tr {type(self).__name__}"
            self._end(
                f"The first stage has left no segmentation of {len(missing)} case(s) in {folder}, the first is "
                f"{missing[0]}: train it before, with the fold all or with every fold (nnUNetv2_train {first} -p "
                f"{self.plans_manager.plans_name})."
            )

    def _check_cases(self, cases: list[str]) -> None:
        folder = Path(self.preprocessed_dataset_folder)
        labels = [preprocessed_cases.OUTSIDE, *_labels(self.label_manager)]
        new = preprocessed_cases.unchecked(folder, cases, labels)
        if new:
            self.print_to_log_file(f"Checking {len(new)} preprocessed case(s), once: values finite, labels known.")
        rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if self.is_ddp else (0, 1)
        dataset, channels = self.dataset_class(str(folder), []), _channels(self.dataset_json)
        found = {case: preprocessed_cases.fault(dataset, case, labels, channels) for case in list(new)[rank::ranks]}
        found = {case: fault for part in self._of_all_ranks(found) for case, fault in part.items()}
        if rank == 0 and new:
            sound = {case: stamps for case, stamps in new.items() if found.get(case, case) is None}
            try:
                preprocessed_cases.remember(folder, labels, sound)
            except OSError as error:
                self.print_to_log_file(f"The next training will check them again: {error}")
        faults = [f"case {case}: {fault}" for case, fault in sorted(found.items()) if fault is not None]
        if faults:
            more = f"; and {len(faults) - _NAMED_CASES} more" if len(faults) > _NAMED_CASES else ""
            known = ", ".join(map(str, labels[1:]))
            self._end(
                f"{len(faults)} preprocessed case(s) in {folder} cannot be trained on (labels are {known}): "
                f"{'; '.join(faults[:_NAMED_CASES])}{more}: {MEND} ({self._preprocess()})."
            )

    def _preprocess(self) -> str:
        """The command that preprocesses again; plans that were made of numbers that are not finite spoil every case."""
        dataset, plans = self.plans_manager.dataset_name, self.plans_manager.plans_name
        planned = self.plans_manager.foreground_intensity_properties_per_channel
        if np.isfinite([value for channel in planned.values() for value in channel.values()]).all():
            return preprocessed_cases.preprocessing(dataset, plans, [self.configuration_name])
        number = dataset[len("Dataset") :].partition("_")[0]
        return (
            f"nnUNetv2_plan_and_preprocess -d {number} --clean, since the intensities in {plans} are not finite either"
        )

    def _of_all_ranks(self, value: Any) -> list:
        if not self.is_ddp:
            return [value]
        values: list = [None] * distributed.get_world_size()
        distributed.all_gather_object(values, value)
        return values

    def _tell_gradients(self, _: nn.Module, __: tuple, loss: object) -> object:
        """Give a loss that is not finite gradients that are not, so that whoever looks at gradients sees it.

        A loss may be NaN with gradients of 0. On several GPUs gradients are averaged, so every process sees it too,
        and a gradient scaler skips the step by itself. A finite loss gets 0 added; nothing waits for the device.
        """
        if not (isinstance(loss, torch.Tensor) and loss.requires_grad):
            return loss
        anchor = next(parameter for parameter in self.network.parameters() if parameter.requires_grad)
        return loss + torch.where(torch.isfinite(loss.detach()), 0.0, torch.nan) * anchor.sum()

    def _before_update(self, optimizer: torch.optim.Optimizer, *_) -> None:
        if not self._has_scaler():  # a scaler does not come here with gradients that are not finite
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, inf)  # changes nothing that is finite
            if not torch.isfinite(norm):
                optimizer.zero_grad(set_to_none=True)  # parameters without a gradient are passed over
                self._rejected = True
                return
        self._applied = True

    def _has_scaler(self) -> bool:
        return self.grad_scaler is not None and self.grad_scaler.is_enabled()

    def on_train_epoch_start(self):
        """Start as nnU-Net does, and count iterations anew."""
        super().on_train_epoch_start()
        self._iteration, self._left_out, self._unvalidated = 0, frozenset(), None
        if self._has_scaler() and self.grad_scaler.get_scale() < LEAST_SCALE:  # of a checkpoint of other code
            self.grad_scaler.load_state_dict({**self.grad_scaler.state_dict(), "scale": LEAST_SCALE})

    def train_step(self, batch: dict) -> dict:
        """Train on a batch as nnU-Net does, unless loss or gradients are not finite.

        Raises:
            Refused: If so many steps in a row were not finite, or the batch holds a label that the data set has not.
        """
        self._iteration += 1
        self._applied = self._rejected = False
        with self._naming_labels(batch):
            outputs = super().train_step(batch)
        counts = self._rejected or self._overflowed() or not np.isfinite(outputs["loss"]).all()
        # Averaged gradients are the same everywhere, so either all processes come here or none does.
        if self.is_ddp and not self._applied:
            counts = any(self._of_all_ranks(counts))
        if counts:
            self._skipped(batch)
        else:
            self._in_a_row = 0
        return outputs

    def _overflowed(self) -> bool:
        """Whether a gradient scaler skipped the step although its scale is as small as makes sense, which it stays."""
        if self._applied or not self._has_scaler() or self.grad_scaler.get_scale() >= LEAST_SCALE:
            return False
        self.grad_scaler.update(LEAST_SCALE)
        return True

    def _skipped(self, batch: dict) -> None:
        self._in_a_row += 1
        self._left_out |= {self._iteration}
        where = f"epoch {self.current_epoch}, iteration {self._iteration} of {self.num_iterations_per_epoch}"
        if self._in_a_row >= self.non_finite_steps:
            keys = _cases(batch) if self._applied else sum(self._of_all_ranks(_cases(batch)), [])
            self._end(
                f"Training ended in {where}: the loss or its gradients were not finite (NaN or infinite) in "
                f"{self._in_a_row} step(s) in a row, none of which was applied; in the last one, with the cases "
                f"{_in_words(keys)}, {self._cause(batch)}."
            )
        if len(self._left_out) == 1:
            self.print_to_log_file(
                f"ATTENTION: the loss or its gradients are not finite in {where}, with the cases "
                f"{_in_words(_cases(batch))}: the step is skipped; {self.non_finite_steps} in a row end the training."
            )

    def _cause(self, batch: dict) -> str:
        """Say where a batch stops being finite, and the remedy; the same on every process, if every one asks."""
        if self.is_ddp and self._applied:  # the others do not ask, and a pass may need them
            return _in_batch(self, batch) or f"the network made them: {LOWER}"
        try:
            for look in (_in_batch, _in_pass, _in_gradients):
                cause = next(filter(None, self._of_all_ranks(look(self, batch))), None)
                if cause is not None:
                    return cause
        except torch.OutOfMemoryError:  # a compiled network may need less
            return f"the network made them, and the memory does not suffice to say where: {LOWER}"
        return f"a second pass over the batch was finite: {LOWER}"

    def on_train_epoch_end(self, train_outputs: list[dict]):
        """End as nnU-Net does; steps that were skipped have no part in the mean loss."""
        if len(self._left_out) > 1:
            self.print_to_log_file(f"{len(self._left_out)} steps of this epoch were not finite and were skipped.")
        kept = [output for number, output in enumerate(train_outputs, 1) if number not in self._left_out]
        super().on_train_epoch_end(kept or train_outputs)

    def validation_step(self, batch: dict) -> dict:
        """Validate on a batch as nnU-Net does, and remember whether the loss was finite."""
        with self._naming_labels(batch):
            outputs = super().validation_step(batch)
        if not np.isfinite(outputs["loss"]).all():
            self._unvalidated = self._unvalidated or _in_words(_cases(batch))
        return outputs

    def on_validation_epoch_end(self, val_outputs: list[dict]):
        """End as nnU-Net does; an epoch without a finite loss or Dice is no new best and moves no average."""
        super().on_validation_epoch_end(val_outputs)
        averages, mean = self.logger.get_value("ema_fg_dice", None), self.logger.get_value("mean_fg_dice", -1)
        loss = self.logger.get_value("val_losses", -1)
        if not np.isfinite([loss, mean]).all():
            averages[-1] = averages[-2] if len(averages) > 1 else np.nan
        elif not np.isfinite(averages[-1]):  # nor would any later one be
            averages[-1] = mean
        if self._best_ema is not None and not np.isfinite(self._best_ema):  # nothing is above NaN
            self._best_ema = -inf
        if not np.isfinite(loss):
            self._best_ema = -inf if self._best_ema is None else self._best_ema
            cases = f", with the cases {self._unvalidated}" if self._unvalidated else ""
            self.print_to_log_file(
                f"ATTENTION: the validation loss of this epoch is not finite{cases}: its Dice does not count."
            )

    def save_checkpoint(self, filename: str) -> None:
        """Save as nnU-Net does.

        Raises:
            Refused: If a weight is not finite; nothing is written then.
        """
        weight = _weight(self)
        if weight is not None:
            self._end(
                f"No checkpoint of epoch {self.current_epoch} was written, since the weight {weight} is not finite "
                f"(NaN or infinite): {LOWER}."
            )
        super().save_checkpoint(filename)

    def _end(self, sentence: str) -> NoReturn:
        self.print_to_log_file(sentence, also_print_to_console=False)
        raise Refused(sentence)

    @contextmanager
    def _naming_labels(self, batch: dict) -> Iterator[None]:
        """Say which case it was where a label that the data set has not ends a step with an index out of range."""
        try:
            yield
        except (IndexError, RuntimeError) as error:
            if isinstance(error, Refused) or self.label_manager.has_regions:
                raise
            labels = _labels(self.label_manager)
            target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
            for case, values in zip(_cases(batch), target):
                strange = values[~torch.isin(values, torch.tensor(labels, dtype=values.dtype))]
                if len(strange):
                    found = ", ".join(map(str, strange.unique().tolist()[:5]))
                    self._end(
                        f"Training ended in epoch {self.current_epoch}: the label map of case {case} holds {found} in "
                        f"{len(strange)} voxel(s) of a patch, labels are {', '.join(map(str, labels))}: {MEND}."
                    )
            raise


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[str]:
    """Give the names of tensors that hold a NaN or an infinite value."""
    for name, tensor in tensors:
        if not torch.isfinite(tensor).all():
            yield name


def _weight(trainer: FiniteTrainer) -> str | None:
    """Give the name of the first weight that is not finite; masks are no weights."""
    weights = bare_network(trainer).state_dict()
    return next((name for name in not_finite(weights.items()) if not is_mask(weights[name])), None)


def first_not_finite_module(network: nn.Module, run: Callable[[], object]) -> str | None:
    """Run something that calls a network, and give the first of its modules whose output is not finite."""
    found: list[str] = []

    def look(name: str, module: nn.Module, _: tuple, output: object) -> None:
        if not found and any(not torch.isfinite(tensor).all() for tensor in _tensors(output)):
            found.append(f"{name or 'the network'} ({type(module).__name__})")

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in network.named_modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _tensors(output: object) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from _tensors(part)


def _in_batch(trainer: FiniteTrainer, batch: dict) -> str | None:
    """Say which channel of which case, or which weight, is not finite."""
    for case, image in zip(_cases(batch), batch["data"]):
        for channel, values in enumerate(image):
            number = int((~torch.isfinite(values)).sum())
            if number:
                words = preprocessed_cases.channel_in_words(channel, _channels(trainer.dataset_json))
                return f"{words} of case {case} holds {number} voxel(s) that are not finite: {MEND}"
    weight = _weight(trainer)
    return None if weight is None else f"the weight {weight} is not finite: {LOWER}"


@torch.no_grad()
def _in_pass(trainer: FiniteTrainer, batch: dict) -> str | None:
    """Say which module, or else the loss, is the first whose output is not finite.

    It is another pass, in which drop path and the like are drawn anew.
    """
    network, losses = bare_network(trainer), []
    module = first_not_finite_module(network, lambda: losses.append(_loss(trainer, network, batch)))
    if module is not None:
        return f"the first output that is not finite is that of {module}: {LOWER}"
    if not torch.isfinite(losses[0]).all():
        return f"all outputs of the network are finite, and {type(trainer.loss).__name__} of them is not: {LOWER}"
    return None


def _in_gradients(trainer: FiniteTrainer, batch: dict) -> str | None:
    """Say which gradient is the first that is not finite, as the backward pass comes to them."""
    network = bare_network(trainer)
    trainer.optimizer.zero_grad(set_to_none=True)
    _loss(trainer, network, batch).backward()
    gradients = [(name, each.grad) for name, each in network.named_parameters() if each.grad is not None]
    trainer.optimizer.zero_grad(set_to_none=True)
    gradient = next(not_finite(reversed(gradients)), None)
    return None if gradient is None else f"the first gradient that is not finite is that of {gradient}: {LOWER}"


def _loss(trainer: FiniteTrainer, network: nn.Module, batch: dict) -> torch.Tensor:
    """The loss of a batch, as in nnU-Net's training step."""
    target = batch["target"]
    target = [each.to(trainer.device) for each in target] if isinstance(target, list) else target.to(trainer.device)
    with torch.autocast("cuda") if trainer.device.type == "cuda" else nullcontext():
        return trainer.loss(network(batch["data"].to(trainer.device)), target)


def _labels(label_manager: Any) -> list[int]:
    ignored = [label_manager.ignore_label] if label_manager.has_ignore_label else []
    return [*map(int, label_manager.all_labels), *ignored]


def _channels(dataset_json: dict) -> dict[str, str]:
    return dataset_json.get("channel_names") or dataset_json.get("modality") or {}


def _cases(batch: dict) -> list[str]:
    """Cases of a batch, in its order; nnU-Net's loader names them."""
    return [str(case) for case in batch.get("keys", range(len(batch["data"])))]


def _in_words(cases: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(cases))
