"""Results folders as nnU-Net leaves them, with scores that a test chooses; written by nnU-Net's own function."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import save_summary_json

DATASET = "Dataset004_Hippocampus"
LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}
SPACING = [1.0, 1.0, 1.0]
NUM_REFERENCE, NUM_IMAGE = 1000, 100_000


def write_run(
    results: Path,
    model: str,
    fold: object,
    dice: Mapping[str, Sequence[float]],
    *,
    labels: Mapping[str, object] = LABELS,
    surface: Mapping[str, Sequence[Mapping[str, float | None]]] | None = None,
    surface_settings: Mapping[str, object] | None = None,
    instances: Mapping[str, Mapping[str, float | None]] | None = None,
    instance_settings: Mapping[str, object] | None = None,
    record: Mapping[str, object] | None = None,
    spacing: Sequence[float] = SPACING,
    num_reference: int = NUM_REFERENCE,
    dataset: str = DATASET,
) -> Path:
    """Write one finished fold and return its folder.

    Args:
        model: ``TRAINER__PLANS__CONFIGURATION``.
        dice: Per case, one value for each foreground label; NaN where both masks are empty. Steps of 0.001.
        surface: Per case, one table of surface metrics for each foreground label.
        instances: Per case, its scores of instances.
        record: What ``logvmamba.json`` shall hold; no such file by default.
    """
    folder = results / dataset / model / f"fold_{fold}"
    validation = folder / "validation"
    validation.mkdir(parents=True)
    content = {"labels": dict(labels), "file_ending": ".nii.gz", "channel_names": {"0": "MRI"}}
    (folder.parent / "dataset.json").write_text(json.dumps(content))
    plans = {"dataset_name": dataset, "original_median_spacing_after_transp": list(spacing)}
    (folder.parent / "plans.json").write_text(json.dumps(plans))
    values = [value for name, value in labels.items() if name != "background"]
    keys = [tuple(value) if isinstance(value, list) else value for value in values]
    entries = []
    for case, values in dice.items():
        metrics = {key: _metrics(value, num_reference) for key, value in zip(keys, values)}
        files = {"reference_file": f"/gt/{case}.nii.gz", "prediction_file": f"/validation/{case}.nii.gz"}
        entries.append({**files, "metrics": metrics})
    means = {key: {"Dice": float(np.nanmean([entry["metrics"][key]["Dice"] for entry in entries]))} for key in keys}
    mean = float(np.mean([value["Dice"] for value in means.values()]))
    summary = {"metric_per_case": entries, "mean": means, "foreground_mean": {"Dice": mean}}
    save_summary_json(summary, str(validation / "summary.json"))
    if surface is not None:
        per_case = [
            {"case": case, "metrics": {str(key): dict(table) for key, table in zip(keys, tables)}}
            for case, tables in surface.items()
        ]
        settings = {"policy": "nnunet", "tolerance": 2.0, "unit": "mm", **(surface_settings or {})}
        (validation / "surface.json").write_text(json.dumps({"metric_per_case": per_case, **settings}))
    if instances is not None:
        rows = [{"case": case, "label": "instances", **table} for case, table in instances.items()]
        settings = {"grow_px": 2, "iou": 0.5, "tile_px": None, "watershed": False, **(instance_settings or {})}
        (validation / "instances.json").write_text(json.dumps({"settings": settings, "scores": rows}))
    if record is not None:
        (folder / "logvmamba.json").write_text(json.dumps({"format": 1, **record}))
    return folder


def _metrics(dice: float, num_reference: int) -> dict[str, float | int]:
    """What nnU-Net stores for a prediction that is as large as the reference."""
    if np.isnan(dice):
        counts = {"TP": 0, "FP": 0, "FN": 0, "TN": NUM_IMAGE, "n_pred": 0, "n_ref": 0}
        return {"Dice": float("nan"), "IoU": float("nan"), **counts}
    true = round(dice * num_reference)
    false = num_reference - true
    counts = {"TP": true, "FP": false, "FN": false, "TN": NUM_IMAGE - num_reference - false}
    iou = true / (num_reference + false)
    return {"Dice": dice, "IoU": iou, **counts, "n_pred": num_reference, "n_ref": num_reference}
