"""Draw docs/figures/block.png: the network on the left, its block on the right.

Run from anywhere: ``python docs/figures/draw_block.py``. Widths and blocks are those of the preset ``paper3d``.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

TARGET = Path(__file__).with_name("block.png")
CONV, LOCAL, BOTH, GLOBAL, HEAD, PLAIN = "#DCE3EA", "#F6C79B", "#E9A0A0", "#A9C9E8", "#CFE3C4", "#FFFFFF"
LINE, GREY = "#333F48", "#66727C"
TEXT = {"ha": "center", "va": "center", "color": LINE}


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, size: float = 9) -> None:
    """A rounded box centred at (x, y)."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=colour,
            edgecolor=LINE,
            linewidth=0.9,
        )
    )
    axes.text(x, y, text, fontsize=size, linespacing=1.25, **TEXT)


def arrow(axes: Axes, *points: tuple[float, float], colour: str = LINE, style: str = "-") -> None:
    """A line through the points with a head at the last one."""
    for start, end in zip(points[:-2], points[1:-1]):
        axes.plot(*zip(start, end), color=colour, linewidth=1, linestyle=style, solid_capstyle="butt")
    axes.annotate(
        "",
        xy=points[-1],
        xytext=points[-2],
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour,
            "linewidth": 1,
            "linestyle": style,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 9,
        },
    )


def operator(axes: Axes, x: float, y: float, sign: str) -> None:
    """A small circle with a sign in it."""
    axes.add_patch(plt.Circle((x, y), 0.17, facecolor=PLAIN, edgecolor=LINE, linewidth=0.9, zorder=3))
    axes.text(x, y, sign, fontsize=10, zorder=4, **TEXT)


def draw_network(axes: Axes) -> None:
    """The U: stem, pooling, five mixing stages; decoder with added skips and a head on every scale."""
    rows = [8.6, 7.1, 5.7, 4.3, 2.9, 1.5]
    scales = ["1/1", "1/2", "1/4", "1/8", "1/16", "1/32"]
    widths = [32, 32, 64, 128, 256, 320]
    blocks = [None, ("L", LOCAL), ("LoG", BOTH), ("LoG", BOTH), ("G", GLOBAL), ("G", GLOBAL)]
    left, right = 2.1, 6.2
    axes.text(left, 9.75, "encoder", fontsize=10.5, weight="bold", **TEXT)
    axes.text(right, 9.75, "decoder", fontsize=10.5, weight="bold", **TEXT)
    axes.text(0.3, 9.75, "scale", fontsize=8.5, ha="center", va="center", color=GREY)
    for row, (y, scale, width, block) in enumerate(zip(rows, scales, widths, blocks)):
        axes.text(0.3, y, scale, fontsize=8.5, ha="center", va="center", color=GREY)
        if block is None:
            box(axes, left, y, 2.6, 0.72, f"full-resolution stem, {width}\n2 residual blocks", CONV, 8.5)
            arrow(axes, (left, 9.5), (left, y + 0.36))
        else:
            letters, colour = block
            number = 2 if row <= 3 else 1
            plural = "s" if number > 1 else ""
            box(axes, left - 0.42, y, 1.76, 0.72, f"{number} residual\nblock{plural}, {width}", CONV, 8.5)
            box(axes, left + 0.92, y, 0.76, 0.72, letters, colour, 10)
            above = rows[row - 1] - 0.36
            leave, enter, turn = (left if row == 1 else left + 0.92), left - 0.42, y + 0.6
            arrow(axes, (leave, above), (leave, turn), (enter, turn), (enter, y + 0.36))
        if row < 5:
            number = 1 if row in (0, 1) else 2
            plural = "s" if number > 1 else ""
            box(axes, right, y, 1.9, 0.72, f"{number} residual\nblock{plural}, {width}", CONV, 8.5)
            arrow(axes, (left + 1.3, y), (4.45, y))
            operator(axes, 4.62, y, "+")
            arrow(axes, (4.79, y), (right - 0.95, y))
            arrow(axes, (right + 0.95, y), (right + 1.35, y))
            box(axes, right + 1.68, y, 0.62, 0.5, "head", HEAD, 8)
    axes.text(left + 0.14, 7.96, "max-pool", fontsize=8, ha="left", va="center", color=GREY)
    axes.text(left + 1.06, 6.5, "stride 2", fontsize=8, ha="left", va="center", color=GREY)
    arrow(axes, (left + 1.3, rows[5]), (4.62, rows[5]), (4.62, rows[4] - 0.17))
    for below, y in zip(rows[4:0:-1], rows[3::-1]):
        middle = below + 0.62
        arrow(axes, (right, below + 0.36), (right, middle), (4.62, middle), (4.62, y - 0.17))
    way_up = "linear up-sampling\nand 1×1×1 convolution\non every way up"
    axes.text(4.74, 1.62, way_up, fontsize=8, ha="left", va="bottom", color=GREY)
    axes.text(right + 1.68, 9.22, "output", fontsize=8.5, **TEXT)
    axes.text(right + 1.68, 6.4, "deep\nsupervision", fontsize=8, ha="center", va="center", color=GREY)
    names = (("L-VMamba block: local tokens", LOCAL), ("LoG-VMamba block: local and global tokens", BOTH))
    names += (("G-VMamba block: global tokens", GLOBAL),)
    for number, (name, colour) in enumerate(names):
        y = 0.55 - 0.36 * number
        axes.add_patch(Rectangle((0.75, y - 0.11), 0.32, 0.22, facecolor=colour, edgecolor=LINE, linewidth=0.8))
        axes.text(1.2, y, name, fontsize=8.5, ha="left", va="center", color=LINE)


def draw_block(axes: Axes) -> None:
    """One LoG-VMamba block from its input map to its output map."""
    a, g, gate = 3.2, 6.15, 8.35
    axes.text(4.6, 9.75, "LoG-VMamba block", fontsize=10.5, weight="bold", **TEXT)
    axes.text(a, 9.42, "map x: C channels", fontsize=8.5, **TEXT)
    box(axes, a, 8.88, 2.9, 0.46, "layer norm", PLAIN)
    box(axes, a, 8.14, 2.9, 0.46, "in-projection, C to 2d", PLAIN)
    arrow(axes, (a, 9.28), (a, 9.11))
    arrow(axes, (a, 8.65), (a, 8.37))
    arrow(axes, (a + 1.45, 8.14), (gate, 8.14), (gate, 2.56))
    axes.text(a + 1.9, 8.3, "gate z", fontsize=8.5, ha="left", va="center", color=LINE)
    arrow(axes, (a, 7.91), (a, 7.62))
    axes.text(a - 0.12, 7.81, "branch a", fontsize=8.5, ha="right", va="center", color=LINE)

    axes.add_patch(Rectangle((1.35, 5.72), 3.4, 1.95, facecolor="none", edgecolor="#C77B30", linestyle=(0, (4, 2))))
    axes.text(1.42, 5.86, "LTX", fontsize=9, weight="bold", ha="left", va="center", color="#B5651D")
    box(axes, a, 7.36, 2.9, 0.48, "convolution, d to d/S, SiLU", LOCAL)
    box(axes, a, 6.5, 2.9, 0.62, "unfold: every token takes\nits R × R × R neighbours", LOCAL, 8.5)
    arrow(axes, (a, 7.12), (a, 6.81))
    arrow(axes, (a, 6.19), (a, 5.15))
    axes.text(a - 0.12, 5.5, "local tokens", fontsize=8.5, ha="right", va="center", color=LINE)

    axes.add_patch(Rectangle((4.95, 5.72), 2.6, 1.95, facecolor="none", edgecolor="#3F79AE", linestyle=(0, (4, 2))))
    axes.text(5.02, 7.54, "GTX", fontsize=9, weight="bold", ha="left", va="center", color="#2F6699")
    box(axes, g + 0.1, 7.06, 2.2, 0.62, "strided grouped\nconvolution", GLOBAL, 8.5)
    box(axes, g + 0.1, 6.2, 2.2, 0.62, "linear over all\npositions, SiLU", GLOBAL, 8.5)
    arrow(axes, (a, 5.95), (4.86, 5.95), (4.86, 7.06), (g - 1.0, 7.06))
    arrow(axes, (g + 0.1, 6.75), (g + 0.1, 6.51))
    arrow(axes, (g + 0.1, 5.89), (g + 0.1, 5.15))
    axes.text(g + 0.22, 5.5, "global tokens", fontsize=8.5, ha="left", va="center", color=LINE)

    tokens = ["g", "l", "l", "l", "g", "l", "l", "l", "g", "l", "l", "l", "g", "l", "l", "l"]
    size, start = 0.37, 1.75
    for number, kind in enumerate(tokens):
        colour = GLOBAL if kind == "g" else LOCAL
        axes.add_patch(
            Rectangle((start + number * size, 4.78), size, 0.37, facecolor=colour, edgecolor=LINE, linewidth=0.8)
        )
        axes.text(start + (number + 0.5) * size, 4.955, kind, fontsize=8.5, **TEXT)
    middle = start + len(tokens) * size / 2
    axes.text(start, 4.59, "interleaved sequence", fontsize=8.5, ha="left", va="center", color=LINE)
    box(axes, middle, 4.18, len(tokens) * size, 0.46, "selective scan (Mamba)", BOTH)
    arrow(axes, (middle, 4.78), (middle, 4.41))
    arrow(axes, (a, 3.95), (a, 3.66))
    axes.text(a + 0.12, 3.8, "outputs at local tokens", fontsize=8.5, ha="left", va="center", color=LINE)
    box(axes, a, 3.43, 2.9, 0.46, "fold: linear to d", PLAIN)
    box(axes, a, 2.76, 2.9, 0.46, "layer norm", PLAIN)
    arrow(axes, (a, 3.2), (a, 2.99))
    arrow(axes, (a, 2.53), (a, 2.24))
    operator(axes, a, 2.07, "×")
    box(axes, gate, 2.33, 0.95, 0.46, "SiLU", PLAIN)
    arrow(axes, (gate, 2.1), (gate, 2.07), (a + 0.17, 2.07))
    arrow(axes, (a, 1.9), (a, 1.67))
    box(axes, a, 1.44, 2.9, 0.46, "out-projection, d to C", PLAIN)
    arrow(axes, (a, 1.21), (a, 0.94))
    operator(axes, a, 0.77, "+")
    arrow(axes, (a, 9.2), (0.75, 9.2), (0.75, 0.77), (a - 0.17, 0.77))
    arrow(axes, (a, 0.6), (a, 0.36))
    axes.text(a, 0.2, "map: C channels", fontsize=8.5, **TEXT)
    axes.text(
        4.35,
        -0.17,
        "L: no GTX.  G: depthwise convolution instead of LTX, no fold.",
        fontsize=8.5,
        ha="center",
        va="center",
        color=GREY,
    )


def main() -> None:
    """Write the figure."""
    plt.rcParams["font.family"] = "DejaVu Sans"
    figure, (network, block) = plt.subplots(1, 2, figsize=(13, 7.4), layout="constrained")
    for axes in (network, block):
        axes.set_xlim(-0.1, 9.1)
        axes.set_ylim(-0.4, 10)
        axes.set_axis_off()
    draw_network(network)
    draw_block(block)
    figure.savefig(TARGET, dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
