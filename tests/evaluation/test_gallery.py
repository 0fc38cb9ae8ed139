"""The gallery of cells: what it draws is what the score counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2hsv
from skimage.io import imread

from nnunet_logvmamba.evaluation.gallery import GREY, RED, Exhibit, draw_gallery
from nnunet_logvmamba.evaluation.instances import LEFT_OUT, UNMATCHED, Counts, count_matches, matched_maps

SHAPE = (64, 96)
# Name: middle row, middle column, whether in truth and in prediction.
DISCS = {
    "pair": (32, 20, True, True),
    "missed": (36, 44, True, False),
    "invented": (32, 68, False, True),
    "left out": (4, 32, True, False),
    "left out of the prediction": (59, 56, False, True),
    "cut by the tile of 48": (14, 47, True, True),
}
RADIUS = 7


def disc(name: str) -> np.ndarray:
    rows, columns = np.indices(SHAPE)
    return np.hypot(rows - DISCS[name][0], columns - DISCS[name][1]) <= RADIUS


@pytest.fixture(scope="module")
def maps() -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction, with numbers that have gaps and differ."""
    truth, prediction = np.zeros(SHAPE, int), np.zeros(SHAPE, int)
    for number, (name, (_, _, true, predicted)) in enumerate(DISCS.items(), start=1):
        truth[disc(name) & true] = 3 * number
        prediction[disc(name) & predicted] = 50 - number
    return truth, prediction


def fates(maps: tuple[np.ndarray, np.ndarray], column: int, **settings: int) -> dict[str, list[int]]:
    found = matched_maps(*maps, **settings)[column]
    return {name: np.unique(found[disc(name)]).tolist() for name in DISCS if DISCS[name][2 + column]}


def test_each_instance_is_a_pair_unmatched_or_left_out(maps):
    true, predicted = fates(maps, 0), fates(maps, 1)
    assert true == {"pair": [1], "missed": [UNMATCHED], "left out": [LEFT_OUT], "cut by the tile of 48": [2]}
    assert predicted["invented"] == [UNMATCHED]
    assert predicted["left out of the prediction"] == [LEFT_OUT]
    assert (predicted["pair"], predicted["cut by the tile of 48"]) == ([1], [2])


def test_without_a_border_nothing_is_left_out_and_a_tile_has_borders_of_its_own(maps):
    assert fates(maps, 0, border=0)["left out"] == [UNMATCHED]
    tiled = fates(maps, 0, tile=48)
    assert tiled["cut by the tile of 48"] == tiled["left out"] == [LEFT_OUT]
    assert tiled["missed"] == [LEFT_OUT]  # two pixels from the line between the tiles
    assert len(fates(maps, 0, tile=48, border=0)["cut by the tile of 48"]) == 2  # two pairs, one in each tile


@pytest.mark.parametrize("settings", [{}, {"border": 0}, {"tile": 48}, {"tile": 20, "border": 1}, {"tile": 9}])
def test_the_maps_hold_as_many_pairs_and_errors_as_the_score_counts(maps, settings):
    counts = count_matches(*maps, **settings)[0.5]
    whole = settings.get("tile", max(SHAPE))
    tile = np.indices(SHAPE) // whole
    pieces = []  # a cut instance counts once in each tile
    for instances, found in zip(maps, matched_maps(*maps, **settings)):
        keys = np.stack([*tile, instances, found], -1)[instances != 0]
        pieces.append([int(key[-1]) for key in np.unique(keys, axis=0)])
    pairs = [sorted(fate for fate in column if fate > 0) for column in pieces]
    assert pairs[0] == pairs[1] == list(range(1, counts.true_positives + 1))
    assert counts == Counts(len(pairs[0]), pieces[1].count(UNMATCHED), pieces[0].count(UNMATCHED))


def panels(target: Path, number: int) -> list[np.ndarray]:
    """The pictures of a gallery with one row, from left to right; the page around them is white."""
    picture = imread(target)[..., :3].astype(float)
    page = (picture > 250).all(-1)
    crossed = np.pad(~page[len(page) // 2], 1).astype(int)  # a row through the middle
    starts, ends = np.flatnonzero(np.diff(crossed) == 1), np.flatnonzero(np.diff(crossed) == -1)
    sides = [(start, end) for start, end in zip(starts, ends) if end - start > 100]
    assert len(sides) == number
    rows = np.flatnonzero(~page[:, sides[0][0] + 5])
    height = round((sides[0][1] - sides[0][0]) * SHAPE[0] / SHAPE[1])
    return [picture[rows[0] : rows[0] + height, start:end] for start, end in sides]


def share_of(colour: tuple[float, float, float], window: np.ndarray) -> float:
    """Pixels of very nearly this colour."""
    return float((np.abs(window - 255 * np.array(colour)) < 12).all(-1).mean())


def colours(maps, target: Path, **settings: int) -> dict[tuple[str, str], str]:
    """Colour of the outline of each disc in both columns: red, grey, another, none."""
    draw_gallery([Exhibit("case", np.zeros(SHAPE), maps[1], maps[0])], target, **settings)
    seen = {}
    for column, panel in zip(("truth", "prediction"), panels(target, 3)[1:]):
        scale = panel.shape[0] / SHAPE[0]
        for name, (row, middle, *_) in DISCS.items():
            rows, columns = (
                slice(round(max(0, place - RADIUS - 1) * scale), round((place + RADIUS + 2) * scale))
                for place in (row, middle)
            )
            window = panel[rows, columns]
            shares = {"red": share_of(RED, window), "grey": share_of(GREY, window)}
            shares["another"] = (window.max(-1) > 150).mean() - sum(shares.values())
            colour = max(shares, key=shares.get)
            seen[name, column] = colour if shares[colour] > 0.01 else "none"
    return seen


def test_left_out_missed_and_invented_instances_have_colours_of_their_own(maps, tmp_path):
    seen = colours(maps, tmp_path / "gallery.png")
    assert seen["left out", "truth"] == "grey"
    assert seen["left out of the prediction", "prediction"] == "grey"
    assert seen["missed", "truth"] == "red"
    assert seen["invented", "prediction"] == "red"
    assert seen["pair", "truth"] == seen["pair", "prediction"] == "another"
    assert seen["left out", "prediction"] == seen["missed", "prediction"] == seen["invented", "truth"] == "none"


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("with_truth", [True, False])
def test_neighbours_differ_in_colour_whatever_their_numbers(with_truth, background, tmp_path):
    rows, columns = np.indices(SHAPE)
    numbers = np.random.default_rng(0).permutation(24).reshape(4, 6) * 8 + 1  # in turn, all would have one colour
    squares = numbers[rows // 16, columns // 16]
    squares[(rows % 16 < 2) & background] = 0
    truth = squares if with_truth else None
    draw_gallery([Exhibit("case", np.zeros(SHAPE), squares, truth)], tmp_path / "gallery.png", border=0)
    for panel in panels(tmp_path / "gallery.png", 3 if with_truth else 2)[1:]:
        size = panel.shape[0] / 4
        seen = np.empty((4, 6), int)  # hue of the brightest pixels in each square
        for row, column in np.ndindex(4, 6):
            window = panel[
                round(row * size) : round((row + 1) * size), round(column * size) : round((column + 1) * size)
            ]
            bright = window[window.max(-1) > 240]
            seen[row, column] = np.bincount(np.rint(rgb2hsv(bright / 255)[:, 0] * 100).astype(int)).argmax()
        assert (seen[1:] != seen[:-1]).all()
        assert (seen[:, 1:] != seen[:, :-1]).all()
        assert len(np.unique(seen)) > 4


def test_the_picture_follows_the_border_and_the_tile_of_the_score(maps, tmp_path):
    kept = colours(maps, tmp_path / "kept.png", border=0)
    assert kept["left out", "truth"] == kept["left out of the prediction", "prediction"] == "red"
    tiled = colours(maps, tmp_path / "tiled.png", tile=48)
    assert tiled["cut by the tile of 48", "truth"] == tiled["cut by the tile of 48", "prediction"] == "grey"


def test_without_a_truth_nothing_is_left_out(maps, tmp_path):
    draw_gallery([Exhibit("case", np.zeros(SHAPE), maps[1])], tmp_path / "gallery.png")
    _, prediction = panels(tmp_path / "gallery.png", 2)
    assert share_of(RED, prediction) == share_of(GREY, prediction) == 0
    assert (prediction.max(-1) > 150).mean() > 0.01
