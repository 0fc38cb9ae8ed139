"""Strings that lie on users' disks, in plans and checkpoints: changing one needs an alias and a changelog line."""

import importlib
import inspect

from nnunet_logvmamba.layers import FAMILIES, PLACEMENTS
from nnunet_logvmamba.networks import LoGVMambaSwinUNet, LoGVMambaUNet
from nnunet_logvmamba.networks.catalogue import PRESETS
from nnunet_logvmamba.plugin import plans, trainers
from nnunet_logvmamba.plugin.trainers import pretraining

TRAINERS = (
    "nnUNetTrainerLoGVMamba",
    "nnUNetTrainerLVMamba",
    "nnUNetTrainerGVMamba",
    "nnUNetTrainerVMamba",
    "nnUNetTrainerNoSSM",
    "nnUNetTrainerLoGVMambaSwin",
    "nnUNetTrainerVMambaSwin",
    "nnUNetTrainerStockNetwork",
    "nnUNetTrainerSwinUMamba",
    "nnUNetTrainerSwinUMambaD",
)
NETWORK_ARGUMENTS = [
    "input_channels",
    "n_stages",
    "features_per_stage",
    "conv_op",
    "kernel_sizes",
    "strides",
    "num_classes",
    "conv_bias",
    "norm_op",
    "norm_op_kwargs",
    "dropout_op",
    "dropout_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
    "deep_supervision",
    "family",
    "placement",
    "directions",
    "window",
    "squeeze",
    "state_size",
    "expand",
    "mixer_stages",
    "local_token_stages",
    "global_token_stages",
    "global_strides",
    "channels_per_token",
    "canonical_grids",
    "seg_heads",
    "drop_path",
    "checkpointing",
    "backend",
]
SWIN_NETWORK_ARGUMENTS = [
    "input_channels",
    "n_stages",
    "features_per_stage",
    "strides",
    "num_classes",
    "n_blocks_per_stage",
    "n_blocks_per_stage_decoder",
    "deep_supervision",
    "family",
    "placement",
    "directions",
    "window",
    "squeeze",
    "state_size",
    "expand",
    "local_token_stages",
    "global_token_stages",
    "global_strides",
    "channels_per_token",
    "canonical_grids",
    "seg_heads",
    "drop_path",
    "checkpointing",
    "backend",
]
RECORD_KEYS = (
    "format",
    "trainer",
    "network",
    "dataset",
    "plans",
    "configuration",
    "fold",
    "seed",
    "recipe",
    "epochs",
    "iterations_per_epoch",
    "validation_iterations_per_epoch",
    "patch_size",
    "batch_size",
    "spacing",
    "split",
    "parameters",
    "multiply_adds",
    "device",
    "versions",
    "sessions",
    "peak_memory_bytes",
    "epochs_done",
    "median_seconds_per_epoch",
    "seconds_per_epoch",
    "validated_epochs",
)


def test_dotted_path_of_the_network_in_plans():
    assert plans.NETWORK_CLASS_NAME == "nnunet_logvmamba.networks.LoGVMambaUNet"
    module, _, name = plans.NETWORK_CLASS_NAME.rpartition(".")
    assert getattr(importlib.import_module(module), name) is LoGVMambaUNet


def test_dotted_path_of_the_2d_network_in_plans():
    assert plans.SWIN_CLASS_NAME == "nnunet_logvmamba.networks.LoGVMambaSwinUNet"
    module, _, name = plans.SWIN_CLASS_NAME.rpartition(".")
    assert getattr(importlib.import_module(module), name) is LoGVMambaSwinUNet


def test_how_a_pretrained_encoder_is_asked_for():
    assert (pretraining.VARIABLE, pretraining.NO_WEIGHTS) == ("nnUNet_logvmamba_pretrained", "none")
    assert pretraining.REPORT == "pretrained_encoder.json"


def test_arguments_of_the_networks_in_plans():
    assert list(inspect.signature(LoGVMambaUNet).parameters) == NETWORK_ARGUMENTS
    assert list(inspect.signature(LoGVMambaSwinUNet).parameters) == SWIN_NETWORK_ARGUMENTS


def test_presets_that_commands_name():
    assert {name: network.name for name, network in PRESETS.items()} == {
        "paper3d": "LoGVMambaUNet",
        "paper2d": "LoGVMambaSwinUNet",
        "umamba_bot3d": "UMambaBot",
        "umamba_enc3d": "UMambaEnc",
        "segmamba3d": "SegMamba",
        "unet3d": "MonaiUNet",
        "unetr3d": "UNETR",
        "swin_unetr3d": "SwinUNETR",
        "nested_former3d": "NestedFormer",
        "eoformer3d": "EoFormer",
        "swin_umamba2d": "SwinUMamba",
    }


def test_words_that_plans_may_hold():
    assert PLACEMENTS == ("head", "middle", "split", "interleaved")
    assert FAMILIES == ("log", "l", "g", "vss", "no_ssm")
    assert plans.TRAINING_KEY == "logvmamba"
    assert plans.TRAINING_SETTINGS == (
        "num_epochs",
        "num_iterations_per_epoch",
        "num_val_iterations_per_epoch",
        "initial_lr",
        "optimizer",
        "weight_decay",
        "surface_tolerance",
        "seed",
        "pretrained",
        "probabilistic_oversampling",
        "oversample_foreground_percent",
        "mirroring",
        "non_finite_steps",
    )


def test_files_of_scores():
    folders = importlib.import_module("nnunet_logvmamba.evaluation.folders")
    validation = importlib.import_module("nnunet_logvmamba.plugin.trainers.scores")
    assert (validation.SURFACES, validation.INSTANCES) == ("surface.json", "instances.json")
    assert (folders.SCORES, folders.SUMMARY, folders.TABLE) == ("scores.csv", "scores.json", "scores.txt")


def test_record_of_a_training():
    run_record = importlib.import_module("nnunet_logvmamba.results.record")
    assert (run_record.RECORD_NAME, run_record.FORMAT) == ("logvmamba.json", 1)
    assert tuple(run_record.KEYS) == RECORD_KEYS


def test_trainers_in_checkpoints_and_results_folders():
    for name in TRAINERS:
        for recipe in ("", "_adam", "_adamw", "_paper", "_published", "_sgd"):
            for suffix in (recipe, f"{recipe}_5epochs", f"{recipe}_seed1", f"{recipe}_5epochs_seed1"):
                trainer = getattr(trainers, name + suffix)
                assert (trainer.__module__, trainer.__name__) == ("nnunet_logvmamba.plugin.trainers", name + suffix)
