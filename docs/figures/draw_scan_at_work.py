"""Draw scan_at_work.png: what trained networks lose with parts of their blocks, and how far their states reach.

``PYTHONPATH=benchmarks python docs/figures/draw_scan_at_work.py`` reads what ``tables.sh long_range --look`` has found.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from long_range import LOG, majority, read
from matplotlib.axes import Axes
from measure import RESULTS

TARGET = Path(__file__).with_name("scan_at_work.png")
COLOURS = {"as trained": "#333F48", "global tokens": "#1F6FB2", "scan": "#D1701C", "blocks": "#6B8E23"}
BLOCKS = {"encoder.mixers.0": ("upper block", 2), "encoder.mixers.1": ("lower block", 4)}
"""Names in the figure, and pixels that a token is from the next one in its row."""


def draw_losses(axes: Axes, rows: list[dict]) -> None:
    """Accuracy against distance, as trained and without parts."""
    for place, (what, colour) in enumerate(COLOURS.items()):
        shares = {row["distance"]: [] for row in rows if what == "as trained" or what in row["dropped"]}
        for row in rows:
            if row["distance"] in shares:
                shares[row["distance"]].append(row["accuracy"] if what == "as trained" else row["dropped"][what])
        distances = sorted(shares)
        label = what if what == "as trained" else f"without {what}"
        width = 5 if what == "as trained" else 1.5
        means = [np.mean(shares[distance]) for distance in distances]
        axes.plot(distances, means, color=colour, linewidth=width, alpha=0.3 if width == 5 else 1, label=label)
        every = [(distance, share) for distance in distances for share in shares[distance]]
        axes.plot(*np.transpose(every), "o", color=colour, markersize=3 + 1.5 * (3 - place), fillstyle="none")
    axes.axhline(majority(), color="grey", linestyle="--", label="guessing by the majority")
    axes.set(xlabel="distance of the cue, pixels", ylabel="targets named rightly", ylim=(0.4, 1.03), title=LOG)
    axes.legend(fontsize=8)


def draw_reach(axes: Axes, rows: list[dict]) -> None:
    """Over how many tokens states fade, before and after training, and how many lie between cue and target."""
    distances = sorted({row["distance"] for row in rows})
    for block, (name, pixels) in BLOCKS.items():
        colour = {2: "#1F6FB2", 4: "#D1701C"}[pixels]
        for when, shift, style in (("blocks_before", -1.5, "--"), ("blocks", 1.5, "-")):
            for distance in distances:
                found = [row[when][block]["fade_tokens"] for row in rows if row["distance"] == distance]
                low, middle, high = np.mean(found, 0)
                x = distance + shift * pixels / 2
                label = f"{name}, {'before' if shift < 0 else 'after'} training" if distance == distances[0] else None
                axes.plot((x, x), (low, high), style, color=colour, label=label)
                axes.plot(x, middle, "o", color=colour, markersize=4)
        apart = [distance / pixels for distance in distances]
        axes.plot(distances, apart, ":", color=colour, label=f"from cue to target, {name}")
    axes.set(
        xlabel="distance of the cue, pixels", ylabel="tokens", yscale="log", title="until a state is e times smaller"
    )
    axes.set_ylim(0.08, None)
    axes.legend(fontsize=6, loc="lower center", ncols=2)


def main() -> None:
    """Draw LoG-VMamba's trainings along the rows."""
    rows = [
        row
        for row in read(RESULTS / "long_range_cpu.json")
        if row["network"] == LOG
        and "dropped" in row
        and (row["dims"], row["along"], row["control"]) == (2, "fast", False)
    ]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    draw_losses(axes[0], rows)
    draw_reach(axes[1], rows)
    figure.savefig(TARGET, dpi=110)


if __name__ == "__main__":
    main()
