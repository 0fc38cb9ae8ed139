"""Draw docs/figures/scan.png: how rows become a sequence, what a state remembers, and how the scan is cut into chunks.

Run from anywhere: ``python docs/figures/draw_scan.py``. Order and states are those of the package, not drawn by hand.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from nnunet_logvmamba.layers.token_order import sequence_orders
from nnunet_logvmamba.ops import selective_scan

TARGET = Path(__file__).with_name("scan.png")
LOCAL, GLOBAL, LINE, GREY = "#F6C79B", "#A9C9E8", "#333F48", "#66727C"
SPATIAL, NUM_GLOBAL = (4, 5), 4


def draw_rows(axes: Axes) -> None:
    """The map with its raster indices, and the global tokens behind it, as they lie in memory."""
    height, width = SPATIAL
    for row in range(height * width):
        cell(axes, row % width, -(row // width), str(row), LOCAL)
    for token in range(NUM_GLOBAL):
        cell(axes, token + 0.5, -height - 0.7, f"g{token}", GLOBAL)
    axes.text(width / 2 - 0.5, 1.0, "rows, as they lie", ha="center", color=LINE)
    axes.text(-0.75, -(height - 1) / 2, "local", rotation=90, va="center", ha="center", color=GREY, fontsize=8)
    axes.text(-0.25, -height - 0.7, "global", va="center", ha="right", color=GREY, fontsize=8)
    frame(axes, (-1.6, width), (-height - 1.4, 1.4))


def draw_orders(axes: Axes) -> None:
    """The order in which those rows are read, for three placements and a second direction."""
    lines = [("interleaved", 0), ("interleaved", 1), ("head", 0), ("split", 0)]
    for line, (placement, direction) in enumerate(lines):
        order = sequence_orders(SPATIAL, NUM_GLOBAL, placement, directions=2)[direction]
        num_local = SPATIAL[0] * SPATIAL[1]
        for position, row in enumerate(order.tolist()):
            known = row < num_local
            text = str(row) if known else f"g{row - num_local}"
            cell(axes, position, -1.8 * line, text, LOCAL if known else GLOBAL, size=6.5)
        words = f"{placement}, direction {direction}"
        axes.text(-0.5, -1.8 * line + 0.62, words, ha="left", va="bottom", color=GREY, fontsize=8)
    axes.text(11.5, 2.1, "order[t]: the row that is read at step t", ha="center", color=LINE)
    frame(axes, (-1, 24), (-6.4, 2.4))


def draw_states(axes: Axes) -> None:
    """What is left of a single input of 1 at later steps, for three step sizes."""
    length = 48
    for step, colour in ((0.02, "#1F6FB2"), (0.1, "#D1701C"), (0.5, "#6B8E23")):
        u = torch.zeros(1, length, 1)
        u[0, 4] = 1 / step  # so that the state starts at 1 whatever the step
        ones = torch.ones(1, length, 1, 1)
        delta = torch.full((1, length, 1), step)
        y = selective_scan(u, delta, -torch.ones(1, 1), ones, ones, delta_softplus=False, backend="reference")
        axes.plot(y[0, :, 0], color=colour, label=f"Δ = {step:g}")
    axes.set_xlabel("step t", color=LINE)
    axes.set_title("state after one input at t = 4, with A = −1", fontsize=10, color=LINE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def draw_chunks(axes: Axes) -> None:
    """Three passes over a sequence in chunks."""
    arrow = {"arrowstyle": "-|>", "color": LINE, "linewidth": 1}
    for chunk in range(4):
        x = 3.2 * chunk
        cell(axes, x, 0, "from zero", "#FFFFFF", width=2.6)
        cell(axes, x, -1.9, f"h{chunk}", GLOBAL, width=1)
        cell(axes, x, -3.8, "for good", LOCAL, width=2.6)
        axes.annotate("", (x, -3.3), (x, -2.4), arrowprops=arrow)
        if chunk:  # what a chunk starts with: what the one before made of zero, and of what that one started with
            axes.annotate("", (x - 0.35, -1.4), (x - 2.4, -0.5), arrowprops=arrow)
            axes.annotate("", (x - 0.55, -1.9), (x - 2.65, -1.9), arrowprops=arrow)
    for y, words in ((0, "1  all chunks at once"), (-1.9, "2  entry states, in turn"), (-3.8, "3  all at once again")):
        axes.text(-1.7, y, words, ha="right", va="center", color=GREY, fontsize=8)
    axes.set_title("a long sequence in chunks", fontsize=10, color=LINE)
    frame(axes, (-8.2, 11.4), (-4.6, 0.8))


def cell(axes: Axes, x: float, y: float, text: str, colour: str, *, width: float = 0.94, size: float = 8) -> None:
    """A box of height 0.94 centred at (x, y)."""
    axes.add_patch(
        plt.Rectangle((x - width / 2, y - 0.47), width, 0.94, facecolor=colour, edgecolor=LINE, linewidth=0.7)
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=LINE)


def frame(axes: Axes, xlim: tuple[float, float], ylim: tuple[float, float]) -> None:
    """Equal units, no axes."""
    axes.set(xlim=xlim, ylim=ylim, aspect="equal")
    axes.axis("off")


def main() -> None:
    """Draw the four parts and save them."""
    figure, parts = plt.subplot_mosaic(
        [["rows", "orders", "orders"], ["states", "chunks", "chunks"]],
        figsize=(11, 5.6),
        width_ratios=(1, 1, 1.2),
        layout="constrained",
    )
    draw_rows(parts["rows"])
    draw_orders(parts["orders"])
    draw_states(parts["states"])
    draw_chunks(parts["chunks"])
    figure.savefig(TARGET, dpi=110)


if __name__ == "__main__":
    main()
