"""Draw receptive_fields_2d.png and _3d.png, and print their tables: how far networks see before training.

``PYTHONPATH=benchmarks python docs/figures/draw_receptive_fields.py [--dims 2|3]`` takes every network of the
catalogue, nnU-Net's own, VSS and the control without state space and global tokens. Writes
``benchmarks/results/receptive_fields_<dims>d.json``, too. With another ``--seed`` of the weights it prints the tables
alone.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_network import of_the_catalogue, peers
from measure import save
from PIL import Image
from workloads import CUBE, PICTURES

from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.networks.receptive_field import radii, receptive_field
from nnunet_logvmamba.results.fields import draw

CASES = {2: (replace(PICTURES, patch_size=(192, 192), features=(32, 64, 128, 256, 512)), 4), 3: (CUBE, 1)}
"""By axes: the plan, and images of noise."""
CONTROLS = {"VMamba": "vss", "NoSSM": "no_ssm"}
"""Trainers of LoG-VMamba's network with another family of blocks."""


def far(field: np.ndarray) -> float:
    """Median weight of what lies beyond a third of the image from the middle along an axis, over the largest weight."""
    away = [np.abs(np.arange(size) - size // 2) > size / 3 for size in field.shape]
    return float(np.median(field[np.any(np.meshgrid(*away, indexing="ij"), axis=0)]) / field.max())


def middle_plane(field: np.ndarray) -> np.ndarray:
    """Give what is drawn of a field: all, or the slice through the middle voxel."""
    return field if field.ndim == 2 else field[len(field) // 2]


def row(name: str, seen: Mapping) -> str:
    """Give a line of the table."""
    half, most = (" × ".join(map(str, seen[which])) for which in ("half", "most"))
    return f"| {name} | {half} | {most} | {seen['far']:.1e} |"


def main() -> None:
    """Build each network as its trainer does, and send noise through."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, choices=tuple(CASES), nargs="+", default=list(CASES))
    parser.add_argument("--seed", type=int, default=0, help="of the weights; another than 0 only prints the tables")
    args = parser.parse_args()
    for dims in args.dims:
        case, number = CASES[dims]
        images = torch.randn(number, case.input_channels, *case.patch_size, generator=torch.Generator().manual_seed(0))
        ours = catalogue.row("LoGVMambaUNet")
        builds = peers(case) | {
            name: partial(of_the_catalogue, ours, family=family) for name, family in CONTROLS.items()
        }
        fields, found = {}, {}
        for name, build in builds.items():
            torch.manual_seed(args.seed)
            fields[name] = receptive_field(build(case), images)
            half, most = radii(fields[name])
            found[name] = {"half": half, "most": most, "far": far(fields[name])}
            print(row(name, found[name]), flush=True)
        if args.seed:
            continue
        target = Path(__file__).with_name(f"receptive_fields_{dims}d.png")
        draw({name: middle_plane(field) for name, field in fields.items()}, target)
        Image.open(target).convert("RGB").quantize(96).save(target, optimize=True)
        about = {"patch": case.patch_size, "images": number, "features": case.features}
        save(f"receptive_fields_{dims}d", about | {"fields": found}, None)


if __name__ == "__main__":
    main()
