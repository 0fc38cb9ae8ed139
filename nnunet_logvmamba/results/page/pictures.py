"""Pictures for a report: curves, box plots and cases, each as the bytes of a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_logvmamba.evaluation.metrics import METRICS

# Errors are warm and classes cool, so that no error looks like a class, with a colour vision deficiency neither. A test
# measures the distances; the first colours differ most.
LABEL_COLOURS = (
    "#BB55FF",
    "#BBEEAA",
    "#669966",
    "#006699",
    "#66DDFF",
    "#7711FF",
    "#CC88CC",
    "#33CC88",
    "#7777BB",
    "#99AAFF",
)
MISSED, INVENTED, CONFUSED = "#F01010", "#FF9000", "#FFF000"
ERRORS = {"missed": MISSED, "invented": INVENTED, "wrong class": CONFUSED}
NO_LABEL = "#777777"
CLASS_OPACITY, ERROR_OPACITY = 0.55, 0.85
LONGEST_SIDE = 1200


@dataclass(frozen=True)
class CaseImages:
    """What is painted of a case, all on one grid; ``image`` is grey (axes of the masks) or RGB (a last axis of 3).

    ``truth`` and ``prediction`` are whole numbers; ``spacing`` is per axis.
    """

    image: np.ndarray | None
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, ...]


def colour_of(label: int) -> str:
    """Colour of a label above 0; they repeat."""
    return LABEL_COLOURS[(label - 1) % len(LABEL_COLOURS)]


def curves(logging: Mapping[str, Sequence]) -> bytes:
    """Loss, validation Dice, learning rate and time per epoch against the epoch."""
    figure = Figure(figsize=(11, 3.1), layout="constrained")
    loss, dice, rate, seconds = figure.subplots(1, 4)
    for name, title, colour in (("train_losses", "training", "#0072B2"), ("val_losses", "validation", "#D55E00")):
        if logging.get(name):
            loss.plot(np.asarray(logging[name], dtype=float), label=title, color=colour, linewidth=1.2)
    loss.legend(frameon=False, fontsize=8)
    if logging.get("mean_fg_dice"):
        dice.plot(np.asarray(logging["mean_fg_dice"], dtype=float), color="#009E73", linewidth=0.8, alpha=0.6)
    if logging.get("ema_fg_dice"):
        moving = np.asarray(logging["ema_fg_dice"], dtype=float)
        dice.plot(moving, color="#009E73", linewidth=1.6, label="moving average")
        dice.legend(frameon=False, fontsize=8, loc="lower right")
    if logging.get("lrs"):
        rate.plot(np.asarray(logging["lrs"], dtype=float), color="#444444", linewidth=1.2)
    if logging.get("seconds"):
        seconds.plot(np.asarray(logging["seconds"], dtype=float), color="#444444", linewidth=1.2)
        seconds.set_ylim(bottom=0)
    titles = ("loss", "Dice on validation patches", "learning rate", "seconds per epoch")
    for axes, title in zip((loss, dice, rate, seconds), titles):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for line in axes.get_lines():  # a line does not show an epoch whose neighbours have no value
            there = np.isfinite(line.get_ydata())
            alone = there & ~np.append(False, there[:-1]) & ~np.append(there[1:], False)
            line.set(marker="o", markersize=4, markevery=np.flatnonzero(alone).tolist())
        _tidy(axes)
    return _png(figure)


def box_plots(scores: Mapping[str, Mapping[str, Sequence[float]]], colours: Mapping[str, str]) -> bytes:
    """One panel per metric, one box per class, one dot per case; ``scores`` are metric, class, finite values.

    Dots have the colour of their class in the pictures of cases, grey where ``colours`` has none.
    """
    figure = Figure(figsize=(min(13.0, 0.8 + sum(1.4 + 0.75 * len(s) for s in scores.values())), 3.0))
    figure.set_layout_engine("constrained")
    widths = [1.4 + 0.75 * len(labels) for labels in scores.values()]
    panels = figure.subplots(1, len(scores), squeeze=False, width_ratios=widths)[0]
    generator = np.random.default_rng(0)
    for axes, (metric, labels) in zip(panels, scores.items()):
        values = [np.asarray(series, dtype=float) for series in labels.values()]
        places = np.arange(1, len(values) + 1)
        axes.boxplot(values, positions=places, widths=0.55, showfliers=False, medianprops={"color": "black"})
        for place, (name, series) in zip(places, labels.items()):
            spread = generator.uniform(-0.16, 0.16, len(series))
            colour = colours.get(name, NO_LABEL)
            dots = {"markersize": 4, "alpha": 0.7, "markeredgecolor": "#444444", "markeredgewidth": 0.3}
            axes.plot(place + spread, series, "o", color=colour, zorder=3, **dots)
        axes.set_xticks(
            places, [_short(name) for name in labels], rotation=30, ha="right", fontsize=9, parse_math=False
        )
        axes.set_title(METRICS[metric].title, fontsize=10, parse_math=False)
        if METRICS[metric].bounded:
            axes.set_ylim(-0.03, 1.03)
        _tidy(axes)
    return _png(figure)


def paint(case: CaseImages) -> bytes:
    """Image, truth, prediction and errors side by side: in 2D with outlines, in 3D one row per plane."""
    planes = _planes(case)
    shapes = [_extent(plane) for plane in planes]
    width = 2.7
    heights = [min(2.0, max(0.35, height / length)) * width for height, length in shapes]
    figure = Figure(figsize=(4 * width + 0.3, sum(heights) + 0.45), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(len(planes), 4, squeeze=False, height_ratios=heights)
    flat = case.truth.ndim == 2
    for number, (row, plane) in enumerate(zip(grid, planes)):
        for axes, title in zip(row, ("image", "truth", "prediction", "errors")):
            if number == 0:
                axes.set_title(title, fontsize=11)
            _show(axes, plane)
            axes.set_xticks([])
            axes.set_yticks([])
            for side in axes.spines.values():
                side.set_visible(False)
        row[0].set_ylabel(plane.title, fontsize=10)
        for axes, labels in ((row[1], plane.truth), (row[2], plane.prediction)):
            for label in np.unique(labels[labels > 0]):
                _overlay(axes, plane, labels == label, colour_of(int(label)), outline=flat)
        truth, prediction = plane.truth, plane.prediction
        wrong = {
            MISSED: (truth > 0) & (prediction == 0),
            INVENTED: (truth == 0) & (prediction > 0),
            CONFUSED: (truth > 0) & (prediction > 0) & (truth != prediction),
        }
        for colour, mask in wrong.items():
            _overlay(row[3], plane, mask, colour, outline=False, opacity=ERROR_OPACITY)
    return _png(figure, dpi=90)


@dataclass(frozen=True)
class _Plane:
    title: str
    image: np.ndarray | None
    truth: np.ndarray
    prediction: np.ndarray
    aspect: float
    origin: str


def _planes(case: CaseImages) -> list[_Plane]:
    shape = case.truth.shape
    step = max(1, -(-max(shape) // LONGEST_SIDE))
    if case.truth.ndim == 2:
        thin = (slice(None, None, step),) * 2
        image = None if case.image is None else _scaled(case.image)[thin]
        aspect = case.spacing[0] / case.spacing[1]
        return [_Plane("", image, case.truth[thin], case.prediction[thin], aspect, "upper")]
    wrong = case.truth != case.prediction
    shown = wrong if wrong.any() else (case.truth > 0) | (case.prediction > 0)
    image = None if case.image is None else _scaled(case.image)
    planes = []
    for axis, name in enumerate("zyx"):
        others = tuple(other for other in range(3) if other != axis)
        counts = shown.sum(axis=others)
        index = int(counts.argmax()) if counts.any() else shape[axis] // 2
        here = tuple(index if other == axis else slice(None, None, step) for other in range(3))
        down, along = (case.spacing[other] for other in others)
        planes.append(
            _Plane(
                f"{name} = {index}",
                None if image is None else image[here],
                case.truth[here],
                case.prediction[here],
                down / along,
                "upper" if axis == 0 else "lower",
            )
        )
    return planes


def _extent(plane: _Plane) -> tuple[float, float]:
    height, width = plane.truth.shape
    return height * plane.aspect, width


def _scaled(image: np.ndarray) -> np.ndarray:
    """From 0 to 1 between the percentiles 0.5 and 99.5."""
    low, high = np.percentile(image, (0.5, 99.5))
    return np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)


def _show(axes: Axes, plane: _Plane) -> None:
    image = np.full(plane.truth.shape, 0.15) if plane.image is None else plane.image
    options = {} if image.ndim == 3 else {"cmap": "gray", "vmin": 0, "vmax": 1}
    axes.imshow(image, origin=plane.origin, aspect=plane.aspect, interpolation="nearest", **options)


def _overlay(
    axes: Axes, plane: _Plane, mask: np.ndarray, colour: str, *, outline: bool, opacity: float = CLASS_OPACITY
) -> None:
    if not mask.any():
        return
    if outline:
        padded = np.pad(mask.astype(float), 1)  # so that an outline closes at the border of the image
        rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
        axes.contour(columns, rows, padded, levels=[0.5], colors=colour, linewidths=1.1)
        axes.set_xlim(-0.5, mask.shape[1] - 0.5)
        axes.set_ylim((mask.shape[0] - 0.5, -0.5) if plane.origin == "upper" else (-0.5, mask.shape[0] - 0.5))
        return
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    layer = np.zeros((*mask.shape, 4))
    layer[mask] = red, green, blue, opacity
    axes.imshow(layer, origin=plane.origin, aspect=plane.aspect, interpolation="nearest")


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(True, axis="y", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _png(figure: Figure, dpi: int = 110) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()
