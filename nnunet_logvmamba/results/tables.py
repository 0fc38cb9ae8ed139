"""Writes a comparison as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, isnan

from nnunet_logvmamba.evaluation.layout import in_columns
from nnunet_logvmamba.evaluation.metrics import METRICS
from nnunet_logvmamba.results.comparison import AVERAGE, Comparison, Method, Pair, Score, conclusion, indistinguishable
from nnunet_logvmamba.results.record import COSTS, Cost

NOT_BEYOND_NOISE = "†"
DEFINITION = (
    "Each value is the mean over the cases of a run, then mean ± standard error over folds, their seeds averaged, or "
    "over the seeds of one fold; the average is over classes within a run. Best in bold; † marks what is not beyond "
    "noise of the best, or was not compared with it. (7 of 16): so many values there were. Where the methods have "
    "values for different cases, nothing is bold."
)
TESTS = (
    "Difference: first minus second, mean over cases, seeds averaged per case. Interval: 95 %, BCa bootstrap over "
    "cases. p: Wilcoxon signed-rank, two-sided; Holm: corrected over the pairs of a metric. Beyond noise: Holm p < "
    "0.05, the interval excludes 0, and the difference exceeds its 95 % margin from run to run (Student's t, Welch)."
)


@dataclass(frozen=True)
class Cell:
    """What stands in a table: text, and whether it is the best of its column or not to be told from it."""

    text: str
    best: bool = False
    close: bool = False


@dataclass(frozen=True)
class Table:
    """A title, one column of names and then numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def as_markdown(comparison: Comparison) -> str:
    """Give a whole page."""
    lines = [f"# Comparison on {_plain(comparison.dataset)}", "", _plain(_subject(comparison)), ""]
    lines += [f"- {_plain(conclusion(comparison, metric))}" for metric in comparison.metrics]
    for table in _tables(comparison):
        lines += ["", f"## {_plain(table.title)}", ""]
        lines += [f"| {' | '.join(map(_plain, table.head))} |", f"|{' --- |' * len(table.head)}"]
        lines += [f"| {' | '.join(map(_markdown_cell, row))} |" for row in table.rows]
    lines += ["", DEFINITION, "", TESTS]
    if comparison.notes:
        lines += ["", "## To be kept in mind", "", *(f"- {_plain(note)}" for note in comparison.notes)]
    return "\n".join(lines) + "\n"


def as_text(comparison: Comparison, width: int | None) -> str:
    """Give the page without the marks of Markdown, its tables within so many characters."""
    lines = [f"Comparison on {comparison.dataset}", "", _subject(comparison), ""]
    lines += [f"- {conclusion(comparison, metric)}" for metric in comparison.metrics]
    for table in _tables(comparison):
        cells = [table.head, *([_marked(cell, cell.text) for cell in row] for row in table.rows)]
        lines += ["", table.title, "", in_columns(cells, width=width)]
    lines += ["", DEFINITION, "", TESTS]
    if comparison.notes:
        lines += ["", "To be kept in mind", "", *(f"- {note}" for note in comparison.notes)]
    return "\n".join(lines)


def as_latex(comparison: Comparison) -> str:
    """Give one table environment after another; they need the package booktabs."""
    remarks = (_plain(_subject(comparison)), DEFINITION, TESTS, *comparison.notes)
    lines = [f"% {' '.join(remark.splitlines())}" for remark in remarks]
    for table in _tables(comparison):
        lines += [
            "",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            rf"{' & '.join(map(_tex, table.head))} \\",
            r"\midrule",
            *(rf"{' & '.join(map(_latex_cell, row))} \\" for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


def as_csv(comparison: Comparison) -> dict[str, str]:
    """Give the files ``means.csv``, ``pairs.csv`` and ``costs.csv`` with unrounded numbers."""
    means = [
        [METRICS[metric].title, method, label, score.mean, score.error, score.runs, score.scored, score.left_out]
        for metric, methods in comparison.scores.items()
        for method, labels in methods.items()
        for label, score in labels.items()
    ]
    pairs = [
        [METRICS[p.metric].title, p.label, p.first, p.second]
        + [p.test.difference, p.test.low, p.test.high, p.test.p, p.p_holm]
        + [p.run_margin, p.test.wins, p.test.ties, p.test.losses, p.test.cases, p.verdict]
        for p in comparison.pairs
    ]
    costs = [
        [method.name, len(method.runs), *(method.costs[cost.key] for cost in COSTS)] for method in comparison.methods
    ]
    head_of_means = ["metric", "method", "class", "mean", "standard_error", "runs", "values", "left_out"]
    head_of_pairs = (
        "metric class first second difference low high p p_holm margin_over_runs wins ties losses cases verdict"
    )
    head_of_costs = ["method", "runs", *(cost.key.removeprefix("median_") for cost in COSTS)]
    return {
        "means.csv": _csv(head_of_means, means),
        "pairs.csv": _csv(head_of_pairs.split(), pairs),
        "costs.csv": _csv(head_of_costs, costs),
    }


def _subject(comparison: Comparison) -> str:
    folds = ", ".join(comparison.folds)
    runs = ", ".join(f"{method.name} {len(method.runs)}" for method in comparison.methods)
    kind = "held-out cases, predicted with" if comparison.held_out else "cases in"
    text = f"{comparison.num_cases} {kind} fold{'s' if len(comparison.folds) > 1 else ''} {folds}; runs: {runs}."
    for kind, settings in comparison.settings.items():
        words = ", ".join(f"{key} {_word(value)}" for key, value in sorted(settings.items()))
        text += f" {kind.capitalize()} metrics: {words}." if words else ""
    return f"{text} Dice and IoU as in nnU-Net's summary.json: both masks empty is left out."


def _word(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_word(entry)}" for key, entry in value.items())
    if value is None or isinstance(value, bool):
        return {None: "none", False: "no", True: "yes"}[value]
    return str(value)


def _tables(comparison: Comparison) -> list[Table]:
    by_class = [metric for metric in comparison.metrics if len(comparison.labels[metric]) > 1]
    tables = [_main_table(comparison, "Average over classes" if by_class else "Average over cases")]
    tables += [_class_table(comparison, metric) for metric in by_class]
    return [*tables, *(_pair_table(comparison, metric) for metric in comparison.metrics)]


def _main_table(comparison: Comparison, title: str) -> Table:
    costs = [cost for cost in COSTS if any(method.costs[cost.key] is not None for method in comparison.methods)]
    columns = [_score_column(comparison, metric, AVERAGE) for metric in comparison.metrics]
    rows = [
        (Cell(method.name), *(column[index] for column in columns), *(_cost(method, cost) for cost in costs))
        for index, method in enumerate(comparison.methods)
    ]
    units = (f"{cost.title} ({cost.unit})" if cost.unit else cost.title for cost in costs)
    head = ("method", *map(_titled, comparison.metrics), *units)
    return Table(f"{title}, and cost" if costs else title, head, tuple(rows))


def _cost(method: Method, cost: Cost) -> Cell:
    value = method.costs[cost.key]
    return Cell("-" if value is None else cost.text(value))


def _class_table(comparison: Comparison, metric: str) -> Table:
    labels = (*comparison.labels[metric], AVERAGE)
    columns = [_score_column(comparison, metric, label) for label in labels]
    rows = [
        (Cell(method.name), *(column[index] for column in columns)) for index, method in enumerate(comparison.methods)
    ]
    return Table(_titled(metric, " per class"), ("method", *labels), tuple(rows))


def _score_column(comparison: Comparison, metric: str, label: str) -> list[Cell]:
    scores = {method.name: comparison.scores[metric][method.name][label] for method in comparison.methods}
    means = {name: score.mean for name, score in scores.items() if isfinite(score.mean)}
    same = comparison.same_cases[metric][label]
    best = METRICS[metric].best(means) if means and same else None
    close = indistinguishable(comparison, metric, label, best) if best is not None else set()
    return [
        Cell(
            _score(score, metric),
            # What reads the same is as good, so that no order of rows decides.
            best=best is not None and name in means and _rounded(score.mean, metric) == _rounded(means[best], metric),
            close=name in close and name != best,
        )
        for name, score in scores.items()
    ]


def _pair_table(comparison: Comparison, metric: str) -> Table:
    head = ("pair", "difference", "95 % interval", "p", "p (Holm)", "win/tie/loss", "cases", "verdict")
    pairs = [pair for pair in comparison.pairs if (pair.metric, pair.label) == (metric, AVERAGE)]
    subject = METRICS[metric].title + (", average over classes" if len(comparison.labels[metric]) > 1 else "")
    return Table(f"{subject}: pairs", head, tuple(_pair_row(pair) for pair in pairs))


def _pair_row(pair: Pair) -> tuple[Cell, ...]:
    test = pair.test
    words = (
        f"{pair.first} − {pair.second}",
        _signed(test.difference, pair.metric),
        "-" if isnan(test.low) else f"{_signed(test.low, pair.metric)} to {_signed(test.high, pair.metric)}",
        _p(test.p),
        _p(pair.p_holm),
        f"{test.wins}/{test.ties}/{test.losses}",
        str(test.cases),
        pair.verdict,
    )
    return tuple(map(Cell, words))


def _rounded(value: float, metric: str) -> str:
    return f"{value:.{METRICS[metric].decimals}f}"


def _signed(value: float, metric: str) -> str:
    return "-" if isnan(value) else f"{value:+.{METRICS[metric].decimals}f}"


def _score(score: Score, metric: str) -> str:
    if not isfinite(score.mean):
        return "-"
    error = f" ± {_rounded(score.error, metric)}" if isfinite(score.error) else ""
    count = f" ({score.scored} of {score.scored + score.left_out})" if score.left_out else ""
    return f"{_rounded(score.mean, metric)}{error}{count}"


def _p(value: float) -> str:
    if isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _titled(metric: str, more: str = "") -> str:
    return f"{METRICS[metric].title}{more} {'↑' if METRICS[metric].better == 'higher' else '↓'}"


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow(["" if value is None or value != value else _safe(value) for value in row])
    return file.getvalue()


def _safe(value: object) -> object:
    """A name that a spreadsheet would run as a formula begins with a quote mark."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" else value


def _markdown_cell(cell: Cell) -> str:
    return _marked(cell, _plain(cell.text))


def _marked(cell: Cell, text: str) -> str:
    text = f"**{text}**" if cell.best else text
    return f"{text} {NOT_BEYOND_NOISE}" if cell.close else text


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, also where a name comes from somebody's disk."""
    text = text.replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|\\`*\[\]])", r"\\\1", text)


def _latex_cell(cell: Cell) -> str:
    text = _tex(cell.text)
    text = rf"\textbf{{{text}}}" if cell.best else text
    return rf"{text} $^\dagger$" if cell.close else text


_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_TEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "−": "$-$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"$\dagger$",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\n": " ",
    # At the start of a row these would be taken for arguments of what ends the row before.
    **{character: f"{{{character}}}" for character in "[*"},
    **{letter: rf"$\{name}$" for letter, name in zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", _GREEK.split(), strict=True)},
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _tex(text: str) -> str:
    """Text that pdflatex shows as it is, but for scripts that need another engine."""
    return "".join(_TEX.get(character, character) for character in unicodedata.normalize("NFC", text))
