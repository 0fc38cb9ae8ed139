"""Pictures of effective receptive fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

DECADES = 5
"""From the largest weight of a field down to what is drawn black."""


def draw(fields: Mapping[str, np.ndarray], target: Path) -> None:
    """Draw fields, brightness logarithmic: in 2D four to a row, in 3D one, by its planes through the middle voxel.

    Args:
        fields: By their titles; float (\\*spatial), two axes or three, the same for all.
        target: PNG to write.
    """
    from matplotlib.figure import Figure

    panels = [
        (title if number == 0 else "", plane / field.max())
        for title, field in fields.items()
        for number, plane in enumerate(_planes(field))
    ]
    columns = min(len(panels), 4 if next(iter(fields.values())).ndim == 2 else 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns + 1, 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, plane) in zip(axes.flat, panels):
        axis.set_title(title, fontsize=9, loc="left")
        shown = np.log10(np.maximum(plane, 10.0**-DECADES))
        picture = axis.imshow(shown, cmap="magma", vmin=-DECADES, vmax=0)
    bar = figure.colorbar(picture, ax=axes, shrink=0.7 / rows**0.5)
    bar.set_label("weight, powers of ten of the largest")
    figure.savefig(target, dpi=80)


def _planes(field: np.ndarray) -> list[np.ndarray]:
    if field.ndim == 2:
        return [field]
    return [np.take(field, size // 2, axis) for axis, size in enumerate(field.shape)]
