"""Pictures of instances: image, truth and prediction side by side, with coloured outlines."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy  # loads ndimage when it is used

from .instances import LEFT_OUT, UNMATCHED, matched_maps

WINDOW = 384
"""Larger images are shown by their middle, so many pixels wide and high."""

RED, GREY = (1.0, 0.15, 0.15), (0.75, 0.75, 0.75)
"""Outlines of instances without a partner, and, dashed, of those that the score leaves out."""

_SCALE, _DASH = 3, 8  # pixels of an outline per pixel of the image, and length of its dashes
_NEAR = 16  # pixels between neighbours
_HUES = 0.14, 0.5, 0.33, 0.8, 0.42, 0.22, 0.57, 0.75


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


def draw_gallery(
    exhibits: Sequence[Exhibit], path: Path, *, iou: float = 0.5, border: int = 2, tile: int | None = None
) -> None:
    """Write one PNG: a row per case with its image, the outlines of the truth and those of the prediction.

    Instances are matched as :func:`.instances.count_matches` does under the same ``iou``, ``border`` and ``tile``. A
    true instance and its partner share a colour, which no neighbour has. Red are those without a partner: missed in the
    truth's column, false in the prediction's. Grey and dashed are those that the score leaves out. Without a truth
    nothing is scored, and every prediction has a colour that its neighbours have not. Images above ``WINDOW`` pixels
    show their middle.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with_truth = any(exhibit.truth is not None for exhibit in exhibits)
    titles = ["image", "truth", "prediction"] if with_truth else ["image", "prediction"]
    shapes = [_window(exhibit.image)[0].shape for exhibit in exhibits]
    width = 3.6
    heights = [width * shape[0] / shape[1] + 0.35 for shape in shapes]
    figure = Figure(figsize=(width * len(titles) + 0.1, sum(heights) + 0.25), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(exhibits), len(titles), squeeze=False, gridspec_kw={"height_ratios": heights})
    for number, (row, exhibit) in enumerate(zip(axes, exhibits)):
        for panel, title, picture in zip(row, titles, _panels(exhibit, with_truth, iou, border, tile)):
            panel.imshow(picture, interpolation="nearest")
            panel.set_axis_off()
            if number == 0:
                panel.set_title(title, fontsize=10)
        label = "   ".join(filter(None, (exhibit.title, exhibit.scores, _window(exhibit.image)[1])))
        row[0].text(0, -0.02, label, transform=row[0].transAxes, fontsize=8, va="top")
    if with_truth:
        left_out = f"left out of the score: within {border} px of the border" + (
            f" of a tile of {tile} px" if tile else ""
        )
        styles: dict[str, tuple[Sequence[float], str | tuple]]
        styles = {"in one colour: a pair": (_colour(0), "-"), "missed (truth) or false (prediction)": (RED, "-")}
        if border:
            styles[left_out] = (GREY, (0, (2, 1.2)))
        lines = [Line2D([], [], color=colour, linestyle=style, linewidth=2) for colour, style in styles.values()]
        figure.legend(lines, styles, loc="outside lower left", ncols=len(styles), fontsize=8, frameon=False)
    figure.savefig(path, format="png")


def _window(image: np.ndarray) -> tuple[np.ndarray, str]:
    """Cut the middle out of a large map or image, and say so."""
    parts = tuple(slice((size - min(size, WINDOW)) // 2, (size + min(size, WINDOW)) // 2) for size in image.shape[:2])
    cut = image[parts]
    return cut, "" if cut.shape == image.shape else f"middle {cut.shape[1]} x {cut.shape[0]} px"


def _panels(exhibit: Exhibit, with_truth: bool, iou: float, border: int, tile: int | None) -> list[np.ndarray]:
    picture = _window(_as_rgb(exhibit.image))[0]
    maps = [exhibit.prediction] if exhibit.truth is None else [exhibit.truth, exhibit.prediction]
    panels = [picture, *[np.ones_like(picture)] * (with_truth and exhibit.truth is None)]
    matched = maps if exhibit.truth is None else matched_maps(*maps, threshold=iou, border=border, tile=tile)
    instances, fates = ([_window(each)[0] for each in several] for several in (maps, matched))
    colours = {UNMATCHED: RED, LEFT_OUT: GREY, **_apart(fates)}
    return [*panels, *(_outlined(picture, each, fate, colours) for each, fate in zip(instances, fates))]


def _apart(fates: Sequence[np.ndarray]) -> dict[int, tuple[float, float, float]]:
    """Give every number above 0 in any of the maps a colour that none within ``_NEAR`` pixels of it has.

    Of the colours that are left it is the one used least; where none is left, one of fewest neighbours.
    """
    from skimage.segmentation import expand_labels

    neighbours: dict[int, set[int]] = {number: set() for number in np.unique(fates).tolist() if number > 0}
    for each in fates:
        near = expand_labels(np.maximum(each, 0), _NEAR / 2)
        for one, other in ((near[1:], near[:-1]), (near[:, 1:], near[:, :-1])):
            touching = (one != other) & (one > 0) & (other > 0)
            for a, b in np.unique(np.stack((one[touching], other[touching]), -1), axis=0).tolist():
                neighbours[a].add(b)
                neighbours[b].add(a)
    indices: dict[int, int] = {}
    for number in neighbours:
        taken = Counter(indices.get(other) for other in neighbours[number])
        used = Counter(indices.values())
        indices[number] = min(range(len(_HUES)), key=lambda index: (taken[index], used[index]))
    return {number: _colour(index) for number, index in indices.items()}


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """Stretch the 1st to the 99.5th percentile over 0 to 1, all channels alike, so that colours stay what they are."""
    image = (image[..., None] if image.ndim == 2 else image[..., :3]).astype(float)  # bits have no percentile
    if image.shape[-1] == 2:
        image = image[..., :1]
    low, high = np.percentile(image, (1, 99.5))
    image = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _colour(index: int) -> tuple[float, float, float]:
    """Bright hues from yellow over green to cyan, and violet; red is kept for errors."""
    hue = _HUES[index]
    return colorsys.hsv_to_rgb(hue, 1 if hue < 0.55 else 0.6, 1)


def _outlined(
    picture: np.ndarray, instances: np.ndarray, fates: np.ndarray, colours: Mapping[int, tuple[float, float, float]]
) -> np.ndarray:
    """Draw outlines at ``_SCALE`` times the resolution, so that they are finer than a pixel of the image.

    Args:
        picture: RGB, 0 to 1, (height, width, 3).
        instances: Instance map, (height, width).
        fates: What becomes of each pixel's instance, as :func:`.instances.matched_maps` says it.
        colours: Of every fate.
    """
    from skimage.segmentation import find_boundaries

    picture, instances, fates = (each.repeat(_SCALE, 0).repeat(_SCALE, 1) for each in (picture, instances, fates))
    # Padded, lest the border of the image or window become an outline.
    edge = find_boundaries(np.pad(instances, 1, mode="edge"), mode="inner", connectivity=2)[1:-1, 1:-1]
    edge = scipy.ndimage.binary_dilation(edge, np.ones((3, 3))) & (instances != 0)
    rows, columns = np.indices(edge.shape)
    edge &= (fates != LEFT_OUT) | ((rows + columns) // _DASH % 2 == 0)
    picture[scipy.ndimage.binary_dilation(edge, iterations=2)] *= (
        0.3  # a dark rim, so that bright lines show on bright images
    )
    values, inverse = np.unique(fates[edge], return_inverse=True)
    if len(values):
        picture[edge] = np.array([colours[value] for value in values.tolist()])[inverse]
    return picture
