"""The trainer that all of ours are: stock training with a recipe, seeds and checks before anything is written."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from time import time
from unittest.mock import patch

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import distributed, nn

from nnunet_logvmamba.claims import HeldError, Holder, claimed, holder_of
from nnunet_logvmamba.cores import THREAD_VARIABLES, keep_freed_memory, usable_cores
from nnunet_logvmamba.errors import Refused, UserError
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.ops import ahead, backends
from nnunet_logvmamba.plugin import preprocessed_cases
from nnunet_logvmamba.plugin.environment import best_device, not_written_out, torch_build
from nnunet_logvmamba.plugin.plans import (
    SPLITS,
    TRAINING_KEY,
    check_dataset_json,
    check_patch,
    check_to_train,
    check_training_settings,
    differing,
    foreground_in_words,
    is_ours,
    next_stages,
    to_our_architecture,
)
from nnunet_logvmamba.plugin.prediction_faults import running_functions
from nnunet_logvmamba.plugin.recipes import (
    DEFAULT_RECIPE,
    LOSSES,
    OF_RECIPES,
    PUBLISHED,
    PUBLISHED_RECIPES,
    RECIPES,
    Recipe,
)
from nnunet_logvmamba.plugin.trainer_names import built_by
from nnunet_logvmamba.plugin.trust import data_only
from nnunet_logvmamba.results.runs import IN_USE, SUMMARY, folds_of, read_json

from . import gpu_memory, pretraining, saving
from .finite import FiniteTrainer
from .recording import RecordedTrainer, refuse_too_few_cases
from .scores import write_instance_scores, write_surface_scores
from .weights import bare_network, refuse_foreign_checkpoint, refuse_other_optimizer

INHERITED_SETTINGS = (
    "num_epochs",
    "num_iterations_per_epoch",
    "num_val_iterations_per_epoch",
    "probabilistic_oversampling",
    "oversample_foreground_percent",
    "mirroring",
    "non_finite_steps",
)
"""Settings of a configuration that are attributes of the trainer under the same names, most of them nnU-Net's."""

OF_PREDICTION = {
    "architecture",
    "patch_size",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "preprocessor_name",
    "previous_stage",
    *(f"resampling_fn_{what}{kwargs}" for what in ("data", "seg", "probabilities") for kwargs in ("", "_kwargs")),
}
"""What of a configuration predictions depend on, so that all folds of a model must have it in common."""
_OF_ALL_CONFIGURATIONS = ("image_reader_writer", "transpose_forward", "transpose_backward")
_INTENSITIES = "foreground_intensity_properties_per_channel"
_NEED_NO_INTENSITIES = {"ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"}

_CUDA = torch.device("cuda")
_READS_PRETRAINED = "maybe_load_checkpoint"
"""nnU-Net's function that initializes a trainer and then reads the file of ``-pretrained_weights``."""


class RecipeTrainer(FiniteTrainer):
    """Stock training with a recipe that a name or a configuration can choose; everything else is inherited.

    Settings come, in falling order, from the trainer's name, from the configuration's optional key ``logvmamba``
    (see ``plans.TRAINING_SETTINGS``) and from ``default_recipe`` and nnU-Net. ``initial_lr`` and ``weight_decay`` of a
    configuration belong to the optimizer it names (the default one where it names none), so they do not follow when
    the trainer's name chooses another optimizer, nor when it asks for a published recipe.

    Matrices and kernels are decayed; biases, norms and what the network's modules name as ``undecayed`` are not.

    Raises:
        Refused: Before any folder is created, if there is no such device or configuration here, if the configuration
            cannot be built, if its settings are wrong, if nnU-Net's folders are not set or its cases not preprocessed.
    """

    network_name: str | None = None
    """Dotted path of a network with stages of its own, whatever nnU-Net plans. None: the plan's, or the default."""
    block_family: str | None = None
    """Family of the network's blocks; None: the one that the plan says, or LoG."""
    default_recipe = DEFAULT_RECIPE
    published_recipe = catalogue.DEFAULT.recipe
    """Word of the recipe that the network was published with."""
    named_recipe: str | None = None
    named_epochs: int | None = None
    named_seed: int | None = None
    mirroring = True
    """Whether patches are mirrored while training, and scans when they are predicted, along all axes as in nnU-Net."""

    # nnU-Net stores the arguments under these names in every checkpoint, so they stay as they are.
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = _CUDA):
        _refuse_absent_device(device)
        _refuse_unset_folder("nnUNet_results")
        saving.check_pretrained_weights(sys.argv)
        self._resumes = bool(plans.get("continue_training"))
        if "--val" not in sys.argv:
            _refuse_dataset_json(dataset_json, plans["dataset_name"], begins=not self._resumes)
        settings = self._checked_settings(plans, configuration, dataset_json, device)
        if not self._resumes:
            _refuse_absent_cases(PlansManager(plans), configuration)
            if fold != "all" and type(self).do_split is RecordedTrainer.do_split:
                home = Path(nnUNet_preprocessed, plans["dataset_name"])
                data = PlansManager(plans).get_configuration(configuration).data_identifier
                refuse_too_few_cases(home / data, home / SPLITS)
        name = "__".join((type(self).__name__, plans["plans_name"], configuration))
        model, own_plans = Path(nnUNet_results, plans["dataset_name"], name), self._own_plans(plans, configuration)
        _refuse_held(model / f"fold_{fold}")
        if "--val" not in sys.argv:  # which writes no plans
            _refuse_other_plans(model, own_plans, dataset_json, configuration, fold)
        super().__init__(own_plans, configuration, fold, dataset_json, device)
        planned = PlansManager(plans).get_configuration(configuration).configuration["architecture"]
        self.plan_names_our_network = is_ours(planned)
        self.recipe = self.choose_recipe(self.configuration_manager)
        self.initial_lr = self.recipe.initial_lr
        self.weight_decay = self.recipe.weight_decay
        for name in INHERITED_SETTINGS:
            setattr(self, name, settings.get(name, getattr(self, name)))
        self._foreground = foreground_in_words(self.configuration_manager.batch_size, settings)
        if self.named_epochs is not None:
            self.num_epochs = self.named_epochs
        self.save_every = max(1, min(50, self.num_epochs // 10))
        self.seed = self.named_seed if self.named_seed is not None else settings.get("seed")
        if not _has_several_outputs(self.configuration_manager):
            # There are no other outputs to supervise, and nnU-Net would weigh a single one by 0 / 0.
            self.enable_deep_supervision = False
        self._continues = False
        self._reading = ExitStack()
        self.pretrained_parameters: set[str] = set()

    @classmethod
    def _own_plans(cls, plans: dict, configuration: str) -> dict:
        """Write stages that are not the plan's into it, where nnU-Net reads the scales of deep supervision."""
        if cls.network_name is None:
            return plans
        manager = PlansManager(plans).get_configuration(configuration)
        planned = manager.configuration["architecture"]
        knobs = {} if cls.block_family is None else {"family": cls.block_family}
        entry = {
            **plans["configurations"][configuration],
            "architecture": to_our_architecture(planned, manager.patch_size, cls.network_name, **knobs),
        }
        return {**plans, "configurations": {**plans["configurations"], configuration: entry}}

    @classmethod
    def _checked_settings(cls, plans: dict, configuration: str, dataset_json: dict, device: torch.device) -> dict:
        plans_manager = PlansManager({k: v for k, v in plans.items() if k != "continue_training"})
        try:
            manager = plans_manager.get_configuration(configuration)
        except (RuntimeError, ValueError) as error:  # nnU-Net's sentence; it lists those that there are
            raise Refused(str(error)) from error
        if "--val" not in sys.argv:
            _refuse_unequal_shares(configuration, manager)
        channels = determine_num_input_channels(plans_manager, manager, dataset_json)
        classes = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
        try:
            settings = check_training_settings(manager.configuration.get(TRAINING_KEY))
            network = cls._on_meta(plans_manager, manager, channels, classes)
            if getattr(network, "is_of_one_patch", False):
                saving.check_patch_of_pretrained_weights(sys.argv, manager.patch_size)
            backend = manager.network_arch_init_kwargs.get("backend", "auto")
            if is_ours(manager.configuration["architecture"]) and backend != "auto":
                backends.choose(backend, device)
            if network is not None and getattr(network, "pretrainable", False) and not plans.get("continue_training"):
                pretraining.check_checkpoint(network.encoder, settings)
        except ValueError as error:
            raise Refused(f"Configuration '{configuration}' cannot be trained: {error}") from error
        return settings

    @classmethod
    def _on_meta(cls, plans_manager: PlansManager, manager: ConfigurationManager, *sizes: int) -> nn.Module | None:
        """Build the network without memory, in hardly any time, and check the patch.

        One that somebody else's code builds may ask for values, which there are none of: then nothing is checked.
        """
        try:
            with torch.device("meta"):
                network = built_by(cls, plans_manager, manager, *sizes, True)
                check_patch(network, manager, sizes[0])
        except Exception as error:
            builder = cls.build_network_architecture.__module__
            is_refused = isinstance(error, UserError) and error.__cause__ is None  # by its sizes, not as it ran
            if is_refused or builder.startswith(("nnunet_logvmamba.", "nnunetv2.")):
                raise
            return None
        return network

    @classmethod
    def choose_recipe(cls, configuration_manager: ConfigurationManager) -> Recipe:
        """Give the recipe that the trainer's name, the configuration and the default amount to."""
        settings = check_training_settings(configuration_manager.configuration.get(TRAINING_KEY))
        configured = settings.get("optimizer", cls.default_recipe.optimizer)
        if cls.named_recipe in ("paper", PUBLISHED):
            return PUBLISHED_RECIPES["paper" if cls.named_recipe == "paper" else cls.published_recipe]
        if cls.named_recipe is not None:
            recipe = RECIPES[cls.named_recipe]
        else:
            recipe = cls.default_recipe if configured == cls.default_recipe.optimizer else RECIPES[configured]
        if recipe.optimizer == configured:
            recipe = replace(recipe, **{k: settings[k] for k in ("initial_lr", "weight_decay") if k in settings})
        return recipe

    def initialize(self):
        """Seed, then build network, optimizer and loss as nnU-Net does, load a pretrained encoder, log the recipe."""
        _refuse_absent_cases(self.plans_manager, self.configuration_name)
        self._seed_everything()
        super().initialize()
        caller = running_functions({_READS_PRETRAINED}).get(_READS_PRETRAINED, {})
        if caller.get("pretrained_weights_file") is not None:  # it reads them after this
            self._reading.enter_context(data_only())
        if getattr(bare_network(self), "pretrainable", False):
            self._start_encoder()
        elif "pretrained" in (self.configuration_manager.configuration.get(TRAINING_KEY) or {}):
            self.print_to_log_file(f"'pretrained' is for {catalogue.PRETRAINABLE} and is not used by this network.")
        self.print_to_log_file(
            f"Recipe: {self.recipe.facts()}, {self.num_epochs} epochs of {self.num_iterations_per_epoch} iterations, "
            f"seed {self.seed}"
        )
        if any(name.endswith("A_log") for name, _ in self.network.named_parameters()):
            self._compile_scans()
        if self.device.type == "cpu":
            keep_freed_memory()
            limits = [f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ]
            words = ", ".join([f"{usable_cores()} of {os.cpu_count()} cores may be used", *limits])
            self.print_to_log_file(f"Threads: {torch.get_num_threads()} ({words}).")
        words, lacking = self._foreground
        self.print_to_log_file(f"{'ATTENTION: ' if lacking else 'Foreground: '}{words}")

    def _compile_scans(self):
        """Compile all kernels of the network at once, where it runs on some; a CPU's loops wait for their first use."""
        if self.device.type != "cuda":
            self.print_to_log_file("The first iteration takes longer: it compiles the scan, once on a machine.")
            return
        begin = time()
        patch = (self.batch_size, self.num_input_channels, *self.configuration_manager.patch_size)
        try:
            kernels = ahead.compile_ahead(bare_network(self), patch, self.device)
        except Exception as error:  # of compilers: a gain of time is no reason to stop, and the first step compiles too
            self.print_to_log_file(_not_compiled_ahead(error, next(bare_network(self).parameters()).device))
        else:
            self.print_to_log_file(f"Kernels of the scan: {kernels}, compiled or loaded in {time() - begin:.1f} s.")

    def _set_batch_size_and_oversample(self):
        share = self.oversample_foreground_percent
        super()._set_batch_size_and_oversample()
        if self.probabilistic_oversampling:  # with several GPUs nnU-Net would give each a share of its own
            self.oversample_foreground_percent = share

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        """Augment as nnU-Net does; checkpoints hold the axes of mirroring, and prediction finds them there."""
        rotation, dummy_2d, patch_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.mirroring:
            axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, patch_size, axes

    def _start_encoder(self):
        report_file = Path(self.output_folder) / pretraining.REPORT
        log = self.print_to_log_file
        try:
            if self._continues:
                self.pretrained_parameters = pretraining.continue_encoder(report_file, log)
            else:
                settings = check_training_settings(self.configuration_manager.configuration.get(TRAINING_KEY))
                self.pretrained_parameters = pretraining.start_encoder(
                    bare_network(self).encoder,
                    pretraining.checkpoint_asked_for(settings),
                    report_file if self.local_rank == 0 else None,
                    log,
                )
        except ValueError as error:
            raise Refused(str(error)) from error
        if self.pretrained_parameters and self.num_epochs <= pretraining.KEPT_EPOCHS:
            log(
                f"ATTENTION: a pretrained encoder is kept for {pretraining.KEPT_EPOCHS} epochs and this training has "
                f"{self.num_epochs}, so the encoder will never learn."
            )
        self.optimizer.register_step_pre_hook(self._keep_pretrained_encoder)

    def _keep_pretrained_encoder(self, *_):
        # Neither a learning rate of 0 nor requires_grad would do: nnU-Net's schedule sets the former anew, and DDP
        # waits for the gradients that the latter holds back.
        if self.current_epoch < pretraining.KEPT_EPOCHS:
            for name, parameter in bare_network(self).encoder.named_parameters():
                if name in self.pretrained_parameters:
                    parameter.grad = None

    def configure_optimizers(self):
        """Give the recipe's optimizer and its schedule; the learning rate and decay that a subclass has set hold."""
        self.recipe = replace(self.recipe, initial_lr=self.initial_lr, weight_decay=self.weight_decay)
        optimizer = self.recipe.make_optimizer(self.network)
        return optimizer, self.recipe.make_schedule(optimizer, self.num_epochs)

    def _build_loss(self):
        loss = super()._build_loss()
        both = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        both.weight_dice, both.weight_ce = LOSSES[self.recipe.loss]
        both.register_forward_hook(_as_tensor)
        return loss

    def set_deep_supervision_enabled(self, enabled: bool):
        """Switch the outputs of all scales on or off, where the network has them."""
        if getattr(bare_network(self), "deep_supervised", True):
            super().set_deep_supervision_enabled(enabled)

    def _seed_everything(self, epoch: int = 0):
        if self.seed is None:
            return
        word = int(np.random.SeedSequence([self.seed, epoch, self.local_rank]).generate_state(1)[0])
        random.seed(word)
        np.random.seed(word)  # noqa: NPY002 - the state that nnU-Net's data loader draws from
        torch.manual_seed(word)

    def on_train_start(self):
        """Start as nnU-Net does, once all weights are loaded; on a GPU say what a step needs in memory."""
        super().on_train_start()
        self._reading.close()
        if self.local_rank == 0:
            gpu_memory.announce(self)

    def run_training(self):
        """Train as nnU-Net does.

        Raises:
            Refused: If the disk is full, or another process is at this fold.
        """
        with saving.disk_in_words(Path(self.output_folder)), _alone(self, "train"):
            super().run_training()

    def train_step(self, batch: dict) -> dict:
        """Train on a batch as nnU-Net does.

        Raises:
            Refused: If the GPU is out of memory, with what would fit.
        """
        with gpu_memory.in_words(self):
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        """Validate on a batch as nnU-Net does.

        Raises:
            Refused: If the GPU is out of memory, with what would fit.
        """
        with gpu_memory.in_words(self):
            return super().validation_step(batch)

    def get_dataloaders(self):
        """Give nnU-Net's data loaders; with a seed they augment in this process, so that the order is fixed."""
        if self.seed is None:
            return super().get_dataloaders()
        with patch.dict(os.environ, nnUNet_n_proc_DA="0"):
            return super().get_dataloaders()

    def on_train_epoch_start(self):
        """Seed each epoch by its number, so that a continued training draws what an unbroken one would."""
        self._seed_everything(self.current_epoch + 1)
        super().on_train_epoch_start()

    def perform_actual_validation(self, save_probabilities: bool = False):
        """Validate as nnU-Net does, then write ``surface.json`` and, for cells, ``instances.json`` beside its file.

        Raises:
            Refused: If it is the second stage of a cascade and the first has not left all cases for it, or another
                process is at this fold.
        """
        with saving.disk_in_words(Path(self.output_folder)), _alone(self, "validate"):
            self._reading.close()
            self.check_first_stage()
            if self.local_rank == 0:  # of an earlier training or validation, until this one has ended
                (Path(self.output_folder) / "validation" / SUMMARY).unlink(missing_ok=True)
            super().perform_actual_validation(save_probabilities)
            write_surface_scores(self)
            write_instance_scores(self)
            if self.local_rank == 0:
                self.record_validation()

    def save_checkpoint(self, filename: str) -> None:
        """Save as nnU-Net does, but whole or not at all.

        Raises:
            Refused: If the disk is full or cannot be written to; the file that was there stays.
        """
        saving.save_whole(self, filename, super().save_checkpoint)

    def load_checkpoint(self, filename_or_checkpoint: dict | str | os.PathLike) -> None:
        """Load a checkpoint of this very trainer and network, with ``--c`` the first that is whole.

        Weight decay and all else that a recipe says of the optimizer stay those of this trainer.

        Raises:
            Refused: If it is damaged or holds more than data, if another trainer wrote it, or if its tensors or, with
                ``--c``, its optimizer are not those of this one; nothing is changed.
        """
        source = filename_or_checkpoint
        source = os.fspath(source) if isinstance(source, os.PathLike) else source
        found = saving.read_whole(source, choose=self._resumes and not self.was_initialized)
        if not self.was_initialized:
            self._continues = True
            self.initialize()
        refuse_foreign_checkpoint(self, found.content, found.source)
        if self._resumes:
            refuse_other_optimizer(self.optimizer, found.content, found.source)
        said = [{key: group[key] for key in OF_RECIPES & group.keys()} for group in self.optimizer.param_groups]
        with saving.as_file(found.source) as file, data_only():
            super().load_checkpoint(file)
        for group, settings in zip(self.optimizer.param_groups, said):
            group.update(settings)
            for state in (self.optimizer.state.get(parameter, {}) for parameter in group["params"]):
                if torch.is_tensor(state.get("step")) and not (group.get("fused") or group.get("capturable")):
                    state["step"] = state["step"].cpu()  # nnU-Net puts it on the GPU; Adam would wait for it each time
        saving.say_and_keep_best(self, found)


def _as_tensor(_: nn.Module, inputs: tuple, loss: object) -> object:
    """Give 0 as a tensor where nnU-Net's loss is the number: without Dice, and with every voxel ignored."""
    return loss if isinstance(loss, torch.Tensor) else (inputs[0].flatten()[:1] * 0).sum()


def _not_compiled_ahead(error: Exception, device: torch.device) -> str:
    """What happens now: the first iteration compiles the kernels, unless they cannot be compiled at all."""
    said, used = f"The scan's kernels were not compiled ahead ({error})", backends.automatic(device.type, device.index)
    if backends.BACKENDS[used].made_for is not None:
        return f"{said}; the first iteration does it."
    return f"ATTENTION: {said}, and the scan runs on the slow portable {used!r}: logvmamba doctor shows why."


def _refuse_absent_device(device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        missing = f"CUDA is nnU-Net's default, and torch, a {torch_build()} build, finds no CUDA device here"
    elif device.type == "mps" and not torch.backends.mps.is_available():
        missing = "torch finds no Apple GPU (mps) here"
    else:
        return
    options = ["-device cpu", *["-device mps"] * (best_device() == "mps")]
    raise Refused(f"{missing}: run the command with {' or '.join(options)} (in Python, device=torch.device('cpu')).")


def _refuse_unset_folder(variable: str) -> None:
    folder = os.environ.get(variable, "").strip()
    fault = f"{variable} is not set: export {variable}=/path/to/{variable}" if not folder else not_written_out(variable)
    if fault is not None:
        raise Refused(f"{fault} (logvmamba doctor shows all of nnU-Net's folders).")


def _refuse_other_plans(model: Path, plans: dict, dataset_json: dict, configuration: str, fold: int | str) -> None:
    """Refuse plans with which the folds that are trained in a folder could no longer predict.

    nnU-Net writes those of the last fold that begins into the folder, for all of them.
    """
    others = [each for each in folds_of(model) if each.name != f"fold_{fold}"] if model.is_dir() else []
    trained = [each.name for each in others if any(each.glob("checkpoint_*.pth"))]
    if not trained or not all((model / name).is_file() for name in ("plans.json", "dataset.json")):
        return
    try:
        there, said = read_json(model / "plans.json"), read_json(model / "dataset.json")
    except UserError:  # damaged or being written: whoever begins writes them whole
        return
    keys, manager = differing(plans, there, configuration), PlansManager(plans).get_configuration(configuration)
    other = {f"plans: {key}" for key in set(keys or ()) & OF_PREDICTION}
    of_all = list(_OF_ALL_CONFIGURATIONS)
    of_all += [_INTENSITIES] if set(manager.normalization_schemes) - _NEED_NO_INTENSITIES else []
    other |= {f"plans: {key}" for key in of_all if there.get(key) != plans.get(key)}
    other |= {f"dataset.json: {key}" for key, of in _PREDICTED.items() if of(said) != of(dataset_json)}
    if keys is None or other:
        differ = ", ".join(sorted(other)) or f"plans: {configuration}"
        raise Refused(
            f"{model} is trained otherwise ({', '.join(trained)}), and could not predict with what this fold would "
            f"write there (other {differ}): give the configuration or the plans another name, or move {model} away."
        )


_PREDICTED: dict[str, Callable[[dict], object]] = {
    "labels": lambda content: sorted(map(str, content.get("labels", {}).values())),
    "regions_class_order": lambda content: content.get("regions_class_order"),
    "channel_names": lambda content: len(content.get("channel_names", content.get("modality", ()))),
    "file_ending": lambda content: content.get("file_ending"),
}
"""What of dataset.json predictions depend on: of labels their numbers, of channels how many there are."""


def _refuse_held(fold: Path) -> None:
    several = distributed.is_available() and distributed.is_initialized()
    holder = None if several and distributed.get_rank() else holder_of(fold / IN_USE)
    if holder is not None:
        raise _at_it(fold, holder)


@contextmanager
def _alone(trainer: RecipeTrainer, doing: str) -> Iterator[None]:
    """Hold the fold: what two processes write there together is of use to neither."""
    fold = Path(trainer.output_folder)
    try:
        with claimed(fold / IN_USE, doing) if trainer.local_rank == 0 else nullcontext():
            yield
    except HeldError as error:
        raise _at_it(fold, error.holder) from None


def _at_it(fold: Path, holder: Holder) -> Refused:
    return Refused(
        f"{holder} is at {fold} ({holder.doing}), and two would write the same files: wait for its end, or end it."
    )


def _refuse_absent_cases(plans: PlansManager, configuration: str) -> None:
    _refuse_unset_folder("nnUNet_preprocessed")
    identifier = plans.get_configuration(configuration).data_identifier
    folder = Path(nnUNet_preprocessed, plans.dataset_name, identifier)
    if not preprocessed_cases.has_cases(folder):
        command = preprocessed_cases.preprocessing(plans.dataset_name, plans.plans_name, [configuration])
        raise Refused(f"{folder} holds no preprocessed case of configuration '{configuration}': run {command} first.")
    for stage in next_stages(plans, configuration):
        folder = Path(nnUNet_preprocessed, plans.dataset_name, plans.get_configuration(stage).data_identifier)
        if not preprocessed_cases.has_cases(folder):
            command = preprocessed_cases.preprocessing(plans.dataset_name, plans.plans_name, [stage])
            raise Refused(
                f"{folder} holds no preprocessed case: '{configuration}' is the first stage of a cascade, whose final "
                f"validation predicts for the second with them: run {command} first."
            )


def _refuse_dataset_json(content: dict, dataset: str, *, begins: bool) -> None:
    file = Path(nnUNet_preprocessed.get() or "", dataset, "dataset.json")
    try:
        (check_to_train if begins else check_dataset_json)(content, file)
    except UserError as error:
        raise Refused(f"{error}.") from error


def _refuse_unequal_shares(configuration: str, manager: ConfigurationManager) -> None:
    # nnU-Net would weigh patches unequally, and gather the parts of a batch's Dice as if they had one shape.
    ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    batch_size = manager.batch_size
    if batch_size % ranks:
        kept = "" if is_ours(manager.configuration["architecture"]) else "--keep-network "
        raise Refused(
            f"Configuration '{configuration}' has {batch_size} patches in a batch, which {ranks} GPUs cannot share "
            f"equally: write one with logvmamba plans {kept}--batch-size {-(-batch_size // ranks) * ranks}, or train "
            f"with another -num_gpus."
        )


def _has_several_outputs(configuration_manager: ConfigurationManager) -> bool:
    arguments = configuration_manager.network_arch_init_kwargs
    architecture = configuration_manager.configuration["architecture"]
    if is_ours(architecture) and (
        arguments.get("seg_heads") == "last"
        or not catalogue.row(architecture["network_class_name"]).load().deep_supervised
    ):
        return False
    return len(arguments["strides"]) > 2
