"""A trained model as nnU-Net leaves it, without the training: its files, and weights as they are drawn."""

from __future__ import annotations

import json
import zipfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin import trainers

MRI, RGB = {"0": "MRI"}, {"0": "R", "1": "G", "2": "B"}
LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}
REGIONS = {"background": 0, "whole": [1, 2], "Posterior": 2}
TRAINER, SWIN_TRAINER = "nnUNetTrainerLoGVMamba", "nnUNetTrainerLoGVMambaSwin"


def planned_architecture(dims: int, stages: int = 4) -> dict:
    """A small U-Net as nnU-Net plans it."""
    arguments = {
        "n_stages": stages,
        "features_per_stage": [16, 16, 32, 32][:stages],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * stages,
        "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def small_swin_architecture() -> dict:
    network = catalogue.row("LoGVMambaSwinUNet")
    arguments = {key: deepcopy(network.load().preset["arguments"][key]) for key in ("n_stages", "strides")}
    arguments |= {"features_per_stage": [8, 8, 16, 24, 32], "n_blocks_per_stage": [1] * 4}
    arguments |= {"n_blocks_per_stage_decoder": 1}
    return {
        "network_class_name": network.path,
        "arch_kwargs": arguments,
        "_kw_requires_import": [],
    }


def of_an_earlier_release(trainer: type) -> type:
    """A trainer of a user that builds its network with the arguments of nnU-Net before 2.8."""

    class OfAnEarlierRelease(trainer):
        @staticmethod
        def build_network_architecture(name, arguments, imports, channels, classes, enable_deep_supervision=True):
            return get_network_from_plans(
                name, arguments, imports, channels, classes, deep_supervision=enable_deep_supervision
            )

    return OfAnEarlierRelease


def write_model(
    root: Path,
    dims: int,
    patch_size: list[int],
    *,
    trainer: str = TRAINER,
    architecture: dict | None = None,
    channels: dict[str, str] = MRI,
    labels: dict = LABELS,
    ending: str = ".nii.gz",
    folds: tuple[object, ...] = (0,),
) -> Path:
    """What a training leaves, with weights as they are drawn, built and saved as nnU-Net does."""
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "spacing": [1.0] * dims,
        "patch_size": patch_size,
        "normalization_schemes": ["ZScoreNormalization"] * len(channels),
        "use_mask_for_norm": [False] * len(channels),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": architecture or planned_architecture(dims),
    }
    plans = {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": determine_reader_writer_from_file_ending(ending, verbose=False).__name__,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {key: {"mean": 1.0} for key in channels},
        "configurations": {"small": configuration},
    }
    dataset_json = {"channel_names": channels, "labels": labels, "file_ending": ending}
    if labels is REGIONS:
        dataset_json["regions_class_order"] = [1, 2]
    model = root / f"{trainer}__nnUNetPlans__small"
    model.mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset_json))
    manager = PlansManager(plans)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    torch.manual_seed(0)
    network = getattr(trainers, trainer).build_network_architecture(
        manager, manager.get_configuration("small"), len(channels), heads, True
    )
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float64(1.0)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"plans": plans, "configuration": "small", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": tuple(range(dims)),
    }
    for fold in folds:
        (model / f"fold_{fold}").mkdir()
        torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
    return model


def flip(path: Path) -> None:
    """Flip bytes of the largest tensor in a checkpoint, which torch does not notice; its numbers stay finite."""
    with zipfile.ZipFile(path) as archive:
        tensors = [one for one in archive.infolist() if "/data/" in one.filename]
    part = max(tensors, key=lambda one: one.file_size)
    content = bytearray(path.read_bytes())
    for position in range(part.header_offset + 300, part.header_offset + 500):
        content[position] ^= 0x01
    path.write_bytes(content)
