"""Models as forks of nnU-Net 2, and authors outside of it, save them: their names, their plans."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
NAME = "Dataset701_Golden"


def golden(name: str) -> tuple[dict, dict[str, Tensor]]:
    """Hyper-parameters and tensors of a golden file, which tests have beside the checkout."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        return json.loads(file.metadata()["hyper"]), tensors


def weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a golden file by their authors' names."""
    return {key[6:]: value.float() for key, value in tensors.items() if key.startswith("param/")}


def with_duplicates(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What residual blocks and decoders of forks store once more: the same tensor under a second name."""
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        result[name] = value
        for part, number in (("conv", 0), ("norm", 1)):
            second = re.sub(rf"\.(conv\d)\.{part}\.", rf".\1.all_modules.{number}.", name)
            if second != name:
                result[second] = value
    return result | {f"decoder.{name}": value for name, value in result.items() if name.startswith("encoder.")}


def dataset_json(channels: int, classes: int) -> dict:
    labels = {"background": 0, **{f"part {index}": index for index in range(1, classes)}}
    names = {str(index): f"channel {index}" for index in range(channels)}
    return {"channel_names": names, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}


def old_configuration(patch: list[int], channels: int, **changes: Any) -> dict:
    """A configuration as nnU-Net 2.1 writes it; ``changes`` go into it."""
    dims, stages = len(patch), 4
    return {
        "data_identifier": "nnUNetPlans_x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [float(size) for size in patch],
        "spacing": [1.0] * dims,
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 8,
        "n_conv_per_stage_encoder": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "num_pool_per_axis": [stages - 1] * dims,
        "pool_op_kernel_sizes": [[1] * dims, *[[2] * dims] * (stages - 1)],
        "conv_kernel_sizes": [[3] * dims] * stages,
        "unet_max_num_features": 16,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "batch_dice": False,
        **changes,
    }


def plans(name: str, configuration: dict, channels: int) -> dict:
    """Plans as nnU-Net 2.1 writes them, with one configuration."""
    statistics = {"mean": 0.0, "std": 1.0, "median": 0.0, "min": -1.0, "max": 1.0}
    statistics |= {"percentile_00_5": -1.0, "percentile_99_5": 1.0}
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [16, 16, 16],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {name: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(index): statistics for index in range(channels)},
    }


def umamba_plan(hyper: Mapping[str, Any]) -> dict:
    """The configuration of a golden U-Mamba."""
    patch, widths = hyper["patch_size"], hyper["features_per_stage"]
    return old_configuration(
        patch,
        hyper["input_channels"],
        UNet_base_num_features=widths[0],
        unet_max_num_features=widths[-1],
        n_conv_per_stage_encoder=hyper["n_conv_per_stage_in_plan"],
        n_conv_per_stage_decoder=hyper["n_conv_per_stage_in_plan"][:-1],
        pool_op_kernel_sizes=hyper["strides"],
        conv_kernel_sizes=hyper["kernel_sizes"],
    )


def write_fork(
    root: Path,
    trainer: str,
    state: Mapping[str, Tensor],
    configuration: dict,
    channels: int,
    classes: int,
    *,
    folds: tuple[int, ...] = (0,),
    name: str | None = None,
    beside: bool = True,
    epochs: int = 3,
    **changes: Any,
) -> Path:
    """Write the results folder of a fork; without ``beside`` its checkpoints stand alone. ``changes`` go into these."""
    name = name or f"{'2d' if len(configuration['patch_size']) == 2 else '3d_fullres'}"
    own_plans, own_dataset = plans(name, configuration, channels), dataset_json(channels, classes)
    model = root / f"{trainer}__nnUNetPlans__{name}"
    model.mkdir(parents=True)
    if beside:
        (model / "plans.json").write_text(json.dumps(own_plans))
        (model / "dataset.json").write_text(json.dumps(own_dataset))
        (model / "dataset_fingerprint.json").write_text("{}")
    keys = ("mean_fg_dice", "ema_fg_dice", "train_losses", "val_losses", "lrs")
    log: dict[str, list] = {key: [np.float32(0.5)] * epochs for key in keys}
    log["dice_per_class_or_region"] = [[np.float64(0.5)]] * epochs
    log |= {f"epoch_{which}_timestamps": [1.7e9 + epoch for epoch in range(epochs)] for which in ("start", "end")}
    parameters = len({value.data_ptr() for value in state.values()})
    for fold in folds:
        init_args = {"plans": deepcopy(own_plans), "configuration": name, "fold": fold, "dataset_json": own_dataset}
        content = {
            "network_weights": dict(state),
            "optimizer_state": {
                "state": {0: {"momentum_buffer": torch.zeros(3)}},
                "param_groups": [{"lr": 0.01, "params": list(range(parameters))}],
            },
            "grad_scaler_state": {"scale": 65536.0, "growth_factor": 2.0},
            "logging": log,
            "_best_ema": np.float64(0.5),
            "current_epoch": epochs,
            "init_args": init_args | {"unpack_dataset": True, "device": torch.device("cpu")},
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": tuple(range(len(configuration["patch_size"]))),
            **changes,
        }
        (model / f"fold_{fold}").mkdir()
        torch.save(content, model / f"fold_{fold}" / "checkpoint_final.pth")
    return model


def scrambled(network: nn.Module) -> nn.Module:
    """A network none of whose tensors is what it starts with."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network
