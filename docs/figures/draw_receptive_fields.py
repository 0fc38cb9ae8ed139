"""Draw receptive_fields.png, and print its table: how far every 2D network of the catalogue sees before training.

``PYTHONPATH=benchmarks python docs/figures/draw_receptive_fields.py``
"""

from dataclasses import replace
from pathlib import Path

import torch
from bench_network import peers
from PIL import Image
from workloads import PICTURES

from nnunet_logvmamba.networks.receptive_field import radii, receptive_field
from nnunet_logvmamba.results.fields import draw

TARGET = Path(__file__).with_name("receptive_fields.png")
SIDE, IMAGES = 192, 4
CASE = replace(PICTURES, patch_size=(SIDE, SIDE), features=(32, 64, 128, 256, 512))


def main() -> None:
    """Build each network as its trainer does, and send noise through."""
    images = torch.randn(IMAGES, CASE.input_channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    fields = {}
    for name, build in peers(CASE).items():
        torch.manual_seed(0)
        fields[name] = receptive_field(build(CASE), images)
        half, most = radii(fields[name])
        print(f"| {name} | {half[0]} × {half[1]} | {most[0]} × {most[1]} |", flush=True)
    draw(fields, TARGET)
    Image.open(TARGET).convert("RGB").quantize(96).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
