"""Trainers that stock nnU-Net finds by name: one recipe, one line per network family.

``trainer_names.GRAMMAR`` is how a trainer is named; the parts in brackets are made on
demand.
"""

from __future__ import annotations

import inspect
import os
import random
import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.ops import backends
from nnunet_logvmamba.plugin.checkpoints import first_difference
from nnunet_logvmamba.plugin.environment import best_device, torch_build
from nnunet_logvmamba.plugin.plans import (
    SWIN_CLASS_NAME,
    TRAINING_KEY,
    build_network,
    check_patch,
    check_training_settings,
    foreground_in_words,
    is_ours,
    to_our_architecture,
)
from nnunet_logvmamba.plugin.startup import EXT_FOLDER, VARIABLE
from nnunet_logvmamba.plugin.trainer_names import GRAMMAR, nearest_name
from nnunet_logvmamba.plugin.trainers import pretraining
from nnunet_logvmamba.plugin.trainers.instance_scores import write_instance_scores
from nnunet_logvmamba.plugin.trainers.recording import RecordedTrainer
from nnunet_logvmamba.plugin.trainers.surface_scores import write_surface_scores


@dataclass(frozen=True)
class Recipe:
    """How weights are updated: the optimizer, its first learning rate and its coupled (L2) weight decay."""

    optimizer: str
    initial_lr: float
    weight_decay: float


RECIPES = {
    "adam": Recipe("adam", 1e-3, 1e-4),
    "paper": Recipe("adam", 1e-4, 1e-4),
    "sgd": Recipe("sgd", 1e-2, 3e-5),
}
"""By the word in a trainer's name: ``adam`` has ten times the paper's learning rate, ``paper`` is the paper's recipe,
``sgd`` (Nesterov, 0.99) is nnU-Net's. A configuration that names the optimizer of a trainer's default recipe gets
that one, another optimizer the recipe of its name."""

DEFAULT_RECIPE = RECIPES["adam"]
"""Used where neither the trainer's name nor the configuration names an optimizer; the best one in docs/results.md."""

INHERITED_SETTINGS = (
    "num_epochs",
    "num_iterations_per_epoch",
    "num_val_iterations_per_epoch",
    "probabilistic_oversampling",
    "oversample_foreground_percent",
)
"""Settings of a configuration that nnU-Net's trainer has under the same names."""

_CUDA = torch.device("cuda")


class RecipeTrainer(RecordedTrainer):
    """Stock training with a recipe that a name or a configuration can choose; everything else is inherited.

    Settings come, in falling order, from the trainer's name, from the configuration's optional key ``logvmamba``
    (see ``plans.TRAINING_SETTINGS``) and from ``default_recipe`` and nnU-Net. ``initial_lr`` and ``weight_decay`` of a
    configuration belong to the optimizer it names (the default one where it names none), so they do not follow when
    the trainer's name chooses another optimizer, nor when it asks for the paper's recipe.

    Matrices and kernels are decayed; biases, norms and whatever the network marks with ``_no_weight_decay`` are not.

    Raises:
        Refused: Before any folder is created, if there is no such device or configuration here, if the configuration
            cannot be built, or if its settings are wrong.
    """

    default_recipe = DEFAULT_RECIPE
    named_recipe: str | None = None
    named_epochs: int | None = None
    named_seed: int | None = None

    # nnU-Net stores the arguments under these names in every checkpoint, so they stay as they are.
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = _CUDA):
        _refuse_absent_device(device)
        settings = self._checked_settings(plans, configuration, dataset_json, device)
        super().__init__(self._own_plans(plans, configuration), configuration, fold, dataset_json, device)
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
        arguments = self.configuration_manager.network_arch_init_kwargs
        one_head = is_ours(self.configuration_manager.configuration["architecture"]) and (
            arguments.get("seg_heads") == "last"
        )
        if one_head or len(arguments["strides"]) < 3:
            # There are no other outputs to supervise, and nnU-Net would weigh a single one by 0 / 0.
            self.enable_deep_supervision = False
        self._continues = False
        self.pretrained_parameters: set[str] = set()

    @classmethod
    def _own_plans(cls, plans: dict, configuration: str) -> dict:
        return plans

    @classmethod
    def _checked_settings(cls, plans: dict, configuration: str, dataset_json: dict, device: torch.device) -> dict:
        plans_manager = PlansManager({k: v for k, v in plans.items() if k != "continue_training"})
        try:
            manager = plans_manager.get_configuration(configuration)
        except RuntimeError as error:  # nnU-Net's sentence; it lists those that there are
            raise Refused(str(error)) from error
        channels = determine_num_input_channels(plans_manager, manager, dataset_json)
        classes = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
        try:
            settings = check_training_settings(manager.configuration.get(TRAINING_KEY))
            with torch.device("meta"):  # no memory and hardly any time, whatever the patch
                network = cls.build_network_architecture(plans_manager, manager, channels, classes)
                check_patch(network, manager, channels)
            if is_ours(manager.configuration["architecture"]):
                backends.choose(manager.network_arch_init_kwargs.get("backend", "auto"), device)
            if getattr(network, "pretrainable", False) and not plans.get("continue_training"):
                pretraining.check_checkpoint(network.encoder, settings)
        except ValueError as error:
            raise Refused(f"Configuration '{configuration}' cannot be trained: {error}") from error
        return settings

    @classmethod
    def choose_recipe(cls, configuration_manager: ConfigurationManager) -> Recipe:
        """Give the recipe that the trainer's name, the configuration and the default amount to."""
        settings = check_training_settings(configuration_manager.configuration.get(TRAINING_KEY))
        configured = settings.get("optimizer", cls.default_recipe.optimizer)
        if cls.named_recipe is not None:
            recipe = RECIPES[cls.named_recipe]
        else:
            recipe = cls.default_recipe if configured == cls.default_recipe.optimizer else RECIPES[configured]
        if recipe.optimizer == configured and cls.named_recipe != "paper":
            recipe = replace(recipe, **{k: settings[k] for k in ("initial_lr", "weight_decay") if k in settings})
        return recipe

    def initialize(self):
        """Seed, then build network, optimizer and loss as nnU-Net does, load a pretrained encoder, log the recipe."""
        self._seed_everything()
        super().initialize()
        if getattr(self._bare_network(), "pretrainable", False):
            self._start_encoder()
        elif "pretrained" in (self.configuration_manager.configuration.get(TRAINING_KEY) or {}):
            self.print_to_log_file(f"'pretrained' is for {catalogue.PRETRAINABLE} and is not used by this network.")
        self.print_to_log_file(
            f"Recipe: {asdict(self.recipe)}, {self.num_epochs} epochs of {self.num_iterations_per_epoch} iterations, "
            f"seed {self.seed}"
        )
        if any(name.endswith("A_log") for name, _ in self.network.named_parameters()):
            self.print_to_log_file("The first iteration takes longer: it compiles the scan, once on a machine.")
        words, lacking = self._foreground
        self.print_to_log_file(f"{'ATTENTION: ' if lacking else 'Foreground: '}{words}")

    def _set_batch_size_and_oversample(self):
        share = self.oversample_foreground_percent
        super()._set_batch_size_and_oversample()
        if self.probabilistic_oversampling:  # with several GPUs nnU-Net would give each a share of its own
            self.oversample_foreground_percent = share

    def _bare_network(self) -> nn.Module:
        network = self.network.module if self.is_ddp else self.network
        return getattr(network, "_orig_mod", network)

    def _start_encoder(self):
        report_file = Path(self.output_folder) / pretraining.REPORT
        log = self.print_to_log_file
        if self._continues:
            self.pretrained_parameters = pretraining.continue_encoder(report_file, log)
        else:
            settings = check_training_settings(self.configuration_manager.configuration.get(TRAINING_KEY))
            try:
                self.pretrained_parameters = pretraining.start_encoder(
                    self._bare_network().encoder,
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
            for name, parameter in self._bare_network().encoder.named_parameters():
                if name in self.pretrained_parameters:
                    parameter.grad = None

    def configure_optimizers(self):
        """Give the recipe's optimizer, with and without weight decay, and nnU-Net's polynomial schedule."""
        decayed, kept = [], []
        for parameter in self.network.parameters():
            free = parameter.ndim <= 1 or getattr(parameter, "_no_weight_decay", False)
            (kept if free else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": kept, "weight_decay": 0.0}]
        if self.recipe.optimizer == "adam":
            optimizer = torch.optim.Adam(groups, lr=self.initial_lr)
        else:
            optimizer = torch.optim.SGD(groups, lr=self.initial_lr, momentum=0.99, nesterov=True)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def _seed_everything(self, epoch: int = 0):
        if self.seed is None:
            return
        word = int(np.random.SeedSequence([self.seed, epoch, self.local_rank]).generate_state(1)[0])
        random.seed(word)
        np.random.seed(word)  # noqa: NPY002 - the state that nnU-Net's data loader draws from
        torch.manual_seed(word)

    def get_dataloaders(self):
        """Give nnU-Net's data loaders; with a seed they augment in this process, so that the order is fixed."""
        if self.seed is None:
            return super().get_dataloaders()
        with _environment(nnUNet_n_proc_DA="0"):
            return super().get_dataloaders()

    def on_train_epoch_start(self):
        """Seed each epoch by its number, so that a continued training draws what an unbroken one would."""
        self._seed_everything(self.current_epoch + 1)
        super().on_train_epoch_start()

    def perform_actual_validation(self, save_probabilities: bool = False):
        """Validate as nnU-Net does, then write ``surface.json`` and, for cells, ``instances.json`` beside its file."""
        super().perform_actual_validation(save_probabilities)
        write_surface_scores(self)
        write_instance_scores(self)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint of this very trainer and network.

        Raises:
            Refused: If another trainer wrote it or its tensors are not those of this network; nothing is changed.
        """
        if not self.was_initialized:
            self._continues = True
            self.initialize()
        checkpoint = filename_or_checkpoint
        if isinstance(checkpoint, str):
            checkpoint = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
        self._refuse_foreign_checkpoint(checkpoint, filename_or_checkpoint)
        super().load_checkpoint(filename_or_checkpoint)

    def _refuse_foreign_checkpoint(self, checkpoint: dict, source: object) -> None:
        name = source if isinstance(source, str) else "the checkpoint"
        writer = checkpoint.get("trainer_name")
        if writer != type(self).__name__:
            raise Refused(
                f"{name} was written by the trainer {writer}, not by {type(self).__name__}: continue with "
                f"-tr {writer}, or remove the file to start anew."
            )
        network = self._bare_network()
        weights = {key.removeprefix("module."): value for key, value in checkpoint["network_weights"].items()}
        difference = first_difference(network, weights)
        if difference is not None:
            raise Refused(
                f"{name} holds another network than configuration '{self.configuration_name}' builds ({difference}): "
                f"use the plans it was trained with, or remove the file to start anew."
            )


def _refuse_absent_device(device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        missing = f"CUDA is nnU-Net's default, and torch, a {torch_build()} build, finds no CUDA device here"
    elif device.type == "mps" and not torch.backends.mps.is_available():
        missing = "torch finds no Apple GPU (mps) here"
    else:
        return
    options = ["-device cpu", *["-device mps"] * (best_device() == "mps")]
    raise Refused(f"{missing}: run the command with {' or '.join(options)} (in Python, device=torch.device('cpu')).")


def _refuse_other_weights(network: nn.Module, weights: dict, prefix: str, metadata: dict, strict: bool, *_) -> None:
    # nnUNetv2_predict loads weights into the network itself, so the network has to speak for us.
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    difference = first_difference(network, own) if strict else None
    if difference is not None:
        raise Refused(
            f"These weights belong to another network than the plans describe ({difference}): use the plans.json that "
            f"was written when they were trained."
        )


@contextmanager
def _environment(**values: str):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _builder(family: str | None, network_name: str | None = None):
    """Give a ``build_network_architecture`` for a trainer.

    Args:
        family: Family of the blocks; None takes the one that the plan says, or LoG.
        network_name: Dotted path of the network; None takes the one that the plan says, or the default.
    """

    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        overrides = {} if family is None else {"family": family}
        try:
            network = build_network(
                configuration_manager,
                num_input_channels,
                num_output_channels,
                enable_deep_supervision,
                network_name,
                **overrides,
            )
        except ValueError as error:
            raise Refused(f"The network cannot be built from this plan: {error}.") from error
        network.register_load_state_dict_pre_hook(_refuse_other_weights)
        return network

    return staticmethod(build_network_architecture)


class nnUNetTrainerLoGVMamba(RecipeTrainer):
    """LoG-VMamba: local and global tokens around a selective scan; a configuration of ours is built as it stands."""

    build_network_architecture = _builder(None)


class nnUNetTrainerLVMamba(RecipeTrainer):
    """Ablation: local tokens only."""

    build_network_architecture = _builder("l")


class nnUNetTrainerGVMamba(RecipeTrainer):
    """Ablation: global tokens only."""

    build_network_architecture = _builder("g")


class nnUNetTrainerVMamba(RecipeTrainer):
    """Ablation: neither local nor global tokens, the plain VSS block."""

    build_network_architecture = _builder("vss")


class nnUNetTrainerNoSSM(RecipeTrainer):
    """Control: the blocks without their state-space part, y = D * u in place of the scan and no global tokens."""

    build_network_architecture = _builder("no_ssm")

    def initialize(self):
        """Build as the base does and log how many parameters the state-space part accounts for."""
        super().initialize()
        with torch.device("meta"):
            whole = _builder("log").__func__(
                self.plans_manager,
                self.configuration_manager,
                self.num_input_channels,
                self.label_manager.num_segmentation_heads,
                self.enable_deep_supervision,
            )
        here, there = (sum(p.numel() for p in network.parameters()) for network in (self.network, whole))
        self.print_to_log_file(
            f"NoSSM has {here:,} parameters, LoG-VMamba {there:,}: the state-space part accounts for {there - here:,}."
        )


class SwinTrainer(RecipeTrainer):
    """The published 2D network: its encoder may start from ImageNet weights and is then kept for ten epochs.

    It has its own stages, whatever nnU-Net planned. So it writes its architecture into the plans that it trains with,
    where nnU-Net reads the scales of deep supervision.
    """

    default_recipe = RECIPES["paper"]
    family: str | None = None

    @classmethod
    def _own_plans(cls, plans: dict, configuration: str) -> dict:
        planned = PlansManager(plans).get_configuration(configuration).configuration["architecture"]
        knobs = {} if cls.family is None else {"family": cls.family}
        entry = {
            **plans["configurations"][configuration],
            "architecture": to_our_architecture(planned, SWIN_CLASS_NAME, **knobs),
        }
        return {**plans, "configurations": {**plans["configurations"], configuration: entry}}


class nnUNetTrainerLoGVMambaSwin(SwinTrainer):
    """The paper's 2D network: VMamba encoder, LoG-VMamba decoder; a configuration of ours is built as it stands."""

    build_network_architecture = _builder(None, SWIN_CLASS_NAME)


class nnUNetTrainerVMambaSwin(SwinTrainer):
    """What the paper's 2D network is built on: the same with VSS blocks in the decoder (Swin-UMamba†)."""

    family = "vss"
    build_network_architecture = _builder("vss", SWIN_CLASS_NAME)


class nnUNetTrainerStockNetwork(RecipeTrainer):
    """The network as nnU-Net plans it, trained with our recipes, seeds and lengths, for comparisons on equal terms."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build nnU-Net's network; a configuration that names ours is refused, lest a comparison compare nothing."""
        if is_ours(configuration_manager.configuration["architecture"]):
            raise Refused(
                "nnUNetTrainerStockNetwork trains the network that nnU-Net planned, but this configuration names "
                "LoG-VMamba: use nnU-Net's own configuration, or one written by logvmamba plans --keep-network."
            )
        return nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )


TRAINER_OF_FAMILY = {
    name.removeprefix("nnUNetTrainer"): value
    for name, value in list(globals().items())
    if inspect.isclass(value) and issubclass(value, RecipeTrainer) and name.startswith("nnUNetTrainer")
}

_NAME = re.compile(
    rf"nnUNetTrainer(?P<family>{'|'.join(TRAINER_OF_FAMILY)})"
    rf"(_(?P<recipe>{'|'.join(RECIPES)}))?(_(?P<epochs>[1-9][0-9]*)epochs)?(_seed(?P<seed>0|[1-9][0-9]*))?"
)


def __getattr__(name: str):
    """Make ``nnUNetTrainer<Family>[_adam|_paper|_sgd][_<N>epochs][_seed<K>]`` the first time it is asked for."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    family = TRAINER_OF_FAMILY[match["family"]]
    body = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": family.__doc__,
        "named_recipe": match["recipe"],
        "named_epochs": None if match["epochs"] is None else int(match["epochs"]),
        "named_seed": None if match["seed"] is None else int(match["seed"]),
    }
    return globals().setdefault(name, type(name, (family,), body))


def for_nnunet(name: str):
    """Give what nnU-Net looks for in our folder; a name that is close to one of ours and is nobody's ends the search.

    Raises:
        AttributeError: If the name is not close to one of ours, or a trainer of the user in another folder has it.
        Refused: Otherwise; it names the nearest trainer.
    """
    try:
        return globals()[name] if name in globals() else __getattr__(name)
    except AttributeError:
        nearest = nearest_name(name, tuple(TRAINER_OF_FAMILY), tuple(RECIPES))
        if nearest is None or _is_in_another_folder(name):
            raise
    raise Refused(
        f"There is no trainer '{name}', the nearest is {nearest}: names are {GRAMMAR}, parts in this order, with "
        f"<Family> one of {', '.join(TRAINER_OF_FAMILY)} (a trainer of your own needs its folder in {VARIABLE})."
    )


def _is_in_another_folder(name: str) -> bool:
    """Whether nnU-Net would find a trainer in a folder of the user's that it has not come to yet."""
    for folder in os.environ.get(VARIABLE, "").split(os.pathsep):
        if os.path.isdir(folder) and not os.path.samefile(folder, EXT_FOLDER):
            found = recursive_find_python_class(folder, name, None, cleanup_imports_from_base_folder=True)
            if found is not None:
                return True
    return False
