"""Pictures of instances: image, truth and prediction side by side, with coloured outlines."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from .instances import match, overlaps

WINDOW = 384
"""Larger images are shown by their middle, so many pixels wide and high."""

_UNMATCHED = (1.0, 0.15, 0.15)


@dataclass(frozen=True)
class Exhibit:
    """One row of a gallery.

    Attributes:
        title: Name of the case.
        image: (height, width) or (height, width, channels), any numbers; of more than three channels the first three.
        prediction: Instance map, (height, width).
        truth: The same, or None where there is none.
        scores: What to print below the title.
    """

    title: str
    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray | None = None
    scores: str = ""


def draw_gallery(exhibits: Sequence[Exhibit], path: Path, *, iou: float = 0.5) -> None:
    """Write one PNG: a row per case with its image, the outlines of the truth and those of the prediction.

    A true instance and the prediction that meets it at the given IoU share a colour. Red are those without a partner:
    missed in the truth's column, false in the prediction's. Without a truth every prediction has a colour of its own.
    Images above ``WINDOW`` pixels show their middle.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with_truth = any(exhibit.truth is not None for exhibit in exhibits)
    titles = ["image", "truth (red: missed)", "prediction (red: false)"] if with_truth else ["image", "prediction"]
    shapes = [_window(exhibit.image)[0].shape for exhibit in exhibits]
    width = 3.6
    heights = [width * shape[0] / shape[1] + 0.35 for shape in shapes]
    figure = Figure(figsize=(width * len(titles) + 0.1, sum(heights) + 0.25), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(exhibits), len(titles), squeeze=False, gridspec_kw={"height_ratios": heights})
    for number, (row, exhibit) in enumerate(zip(axes, exhibits)):
        for panel, title, picture in zip(row, titles, _panels(exhibit, with_truth, iou)):
            panel.imshow(picture, interpolation="nearest")
            panel.set_axis_off()
            if number == 0:
                panel.set_title(title, fontsize=10)
        label = "   ".join(filter(None, (exhibit.title, exhibit.scores, _window(exhibit.image)[1])))
        row[0].text(0, -0.02, label, transform=row[0].transAxes, fontsize=8, va="top")
    figure.savefig(path, format="png")


def _window(image: np.ndarray) -> tuple[np.ndarray, str]:
    """Cut the middle out of a large map or image, and say so."""
    parts = tuple(slice((size - min(size, WINDOW)) // 2, (size + min(size, WINDOW)) // 2) for size in image.shape[:2])
    cut = image[parts]
    return cut, "" if cut.shape == image.shape else f"middle {cut.shape[1]} x {cut.shape[0]} px"


def _panels(exhibit: Exhibit, with_truth: bool, iou: float) -> list[np.ndarray]:
    picture = _as_rgb(exhibit.image)
    true_colours, predicted_colours = _colours(exhibit, iou)
    panels = [_window(picture)[0]]
    if with_truth:
        panels.append(_outlined(picture, exhibit.truth, true_colours))
    return [*panels, _outlined(picture, exhibit.prediction, predicted_colours)]


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """Stretch the 1st to the 99.5th percentile over 0 to 1, all channels alike, so that colours stay what they are."""
    image = image[..., None] if image.ndim == 2 else image[..., :3]
    if image.shape[-1] == 2:
        image = image[..., :1]
    low, high = np.percentile(image, (1, 99.5))
    image = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _colours(exhibit: Exhibit, iou: float) -> tuple[dict[int, tuple], dict[int, tuple]]:
    predictions = [int(value) for value in np.unique(exhibit.prediction) if value]
    if exhibit.truth is None:
        return {}, {value: _colour(index) for index, value in enumerate(predictions)}
    pairs = match(overlaps(exhibit.truth, exhibit.prediction), iou)
    true = {truth: _colour(index) for index, (truth, _) in enumerate(pairs)}
    predicted = {prediction: _colour(index) for index, (_, prediction) in enumerate(pairs)}
    missed = {int(value): _UNMATCHED for value in np.unique(exhibit.truth) if value}
    return missed | true, dict.fromkeys(predictions, _UNMATCHED) | predicted


def _colour(index: int) -> tuple[float, float, float]:
    """Bright hues from yellow over green to cyan, and violet, in turn; red is kept for errors."""
    hue = (0.14, 0.5, 0.33, 0.8, 0.42, 0.22, 0.57, 0.75)[index % 8]
    return colorsys.hsv_to_rgb(hue, 1 if hue < 0.55 else 0.6, 1)


def _outlined(picture: np.ndarray, instances: np.ndarray | None, colours: dict[int, tuple]) -> np.ndarray:
    """Draw outlines at three times the resolution, so that they are finer than a pixel of the image."""
    from skimage.segmentation import find_boundaries

    scale = 3
    picture = _window(picture)[0].repeat(scale, 0).repeat(scale, 1)
    if instances is None:
        return np.ones_like(picture)
    instances = _window(instances)[0].repeat(scale, 0).repeat(scale, 1)
    # Padded, lest the border of the image or window become an outline.
    edge = find_boundaries(np.pad(instances, 1, mode="edge"), mode="inner", connectivity=2)[1:-1, 1:-1]
    edge = ndimage.binary_dilation(edge, np.ones((3, 3))) & (instances > 0)
    picture[ndimage.binary_dilation(edge, iterations=2)] *= (
        0.3  # a dark rim, so that bright lines show on bright images
    )
    known = np.array([0, *colours])
    table = np.array([(0.0, 0.0, 0.0), *colours.values()])
    order = np.argsort(known)
    picture[edge] = table[order][np.searchsorted(known[order], instances[edge])]
    return picture
