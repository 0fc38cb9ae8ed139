"""Make ``docs/benchmarks.md``, its plot and ``docs/peers.md`` from results: ``python benchmarks/tables.py [--check]``.

``--check`` writes nothing and fails if a page is not what the results give.
"""

import argparse
import json
import sys
from pathlib import Path

import gpu_journal
from measure import RESULTS, timing

from nnunet_logvmamba.networks import catalogue

DOCS = RESULTS.parents[1] / "docs"
PAGE, PLOT = DOCS / "benchmarks.md", DOCS / "figures" / "scan_growth.png"
PEERS_PAGE = DOCS / "peers.md"
REFERENCE = "reference"
INTRODUCTION = """# Benchmarks

Made by `python benchmarks/tables.py` from the files in `benchmarks/results/`; nothing here is typed by hand. All
candidates of a table ran in turns in one process, and a figure is the median of its turns. Newer files keep every turn,
the quartiles, and whether the commit was found to be right before it was timed; if it was not, there is no table.
Tables marked "medians only; not known to be checked" are older. On a CPU the newest steps were timed as our trainers
train there, with memory that a step frees kept for the next one, nnU-Net's network too.
"""

PEERS_INTRODUCTION = """# Every network, side by side

Made by `python benchmarks/tables.py` from the files in `benchmarks/results/`; nothing here is typed by hand. What each
network is, who published it and under which licence stands in [trainers](reference/trainers.md#networks);
`logvmamba peers -d ID` gives sizes for a plan of your own.

All networks of a table were built as their trainers build them from one plan, with random weights, and ran in turns in
one process: three training steps (forward, backward, SGD step, all heads) and three predictions (one head) of a batch.
So this says what a step costs, not what it teaches. With batch 2 the prediction is of two patches at once, where
nnU-Net predicts one at a time: [one patch](benchmarks.md#one-patch-cpu) is measured apart. Peak memory is that of two
training steps in a process of its own, beyond what an idle one has; newer tables also have what tensors hold of it at
most, weights and the optimizer's included, since the rest is what the allocator keeps. On a CPU the newest were timed
as our trainers train there, with memory that a step frees kept for the next one. "Sequential scan" is the
algorithm that mamba-ssm publishes as its reference, one step after the other with gradients by autograd. Multiply-adds
(GMAC) are those of one patch forwards; scans are not among them. Some networks have widths of their own and do not
follow the plan's.
"""

LEGEND = """`reference` is the sequential algorithm that mamba-ssm publishes, with autograd, and the better of one and
all threads; mambapy is the parallel scan of the package of that name. A dash: not measured, because the backward of the
loop takes quadratic time, or mambapy's tensors of one number per state and step get too large. Exponentials:
`torch.exp` into warm memory over as many numbers as there are states times steps."""


ONE_PATCH = """torch 2.13 keeps most convolutions of a batch of 1 away from oneDNN; our networks take them there, with
channels innermost (`networks/prediction.py`). Torch's own way is the same network without that. Differences between
the logits of the two are relative: the largest over the largest logit, and root mean squares."""

SIZES = {
    "kept_bytes": "kept for backward, MiB",
    "tensor_peak_bytes": "tensors at most, MiB",
    "peak_bytes": "peak memory, MiB",
}
"""What is measured of memory, and how it is called."""

NO_GPU = """Nothing has been measured on a GPU yet. The kernels are proven in Triton's interpreter and compile for
every NVIDIA generation from sm_75 to sm_100; how fast they are there is open."""


def stored_in(folder: Path) -> dict[str, dict]:
    """All results in a folder: a file's under its name, those of a step on a GPU as ``gpu_`` and its name."""
    stored = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return stored | {f"gpu_{name}": step for name, step in gpu_journal.read(folder).items()}


def refusal(stored: dict[str, dict]) -> str:
    """Why a file's figures do not come into the tables: their commit was not found to be right; "" if all may.

    Older files of the CPU do not say, and the page says that. A step on a GPU that found something wrong has none, nor
    has one of files that were not committed.
    """
    proof = stored.get("gpu_correctness", {"circumstances": {"commit": None}})
    for name, results in stored.items():
        if name.startswith("gpu_") and name != "gpu_correctness" and results.get("wrong"):
            return f"the step {name.removeprefix('gpu_')} on a GPU found this wrong: {results['wrong'][0]}"
        figures = name.startswith(("gpu_scan", "gpu_network", "gpu_profile")) and results.get("rows", True)
        unknown = {"commit": None, "wrong": []} if figures else None
        for block in (results, *results.get("networks", ())):
            about = block.get("circumstances", {})
            if name.startswith("gpu_") and str(about.get("commit")).endswith("-dirty"):
                return (
                    f"{where(name)} has figures of commit {about['commit']}: nobody has that code; commit, and run anew"
                )
            check = about.get("correctness", unknown if about else None)
            if check is None:
                continue
            if check["commit"] != about["commit"]:
                return f"{where(name)} has figures of commit {about['commit']}, which was not checked; time it anew"
            wrong = check["wrong"] + (proof["wrong"] if proof["circumstances"]["commit"] == about["commit"] else [])
            if wrong:
                return f"{where(name)} has figures of commit {about['commit']}, at which this is wrong: {wrong[0]}"
    return ""


def where(name: str) -> str:
    """In which file a result stands."""
    return f"{gpu_journal.NAME}, step {name.removeprefix('gpu_')}," if name.startswith("gpu_") else f"{name}.json"


def seconds_of(timing: dict | float) -> float:
    """The median; older files have nothing else."""
    return timing["seconds"] if isinstance(timing, dict) else timing


def keeps_rounds(found: object) -> bool:
    """Whether figures have their rounds beside them."""
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return isinstance(found, dict) and "rounds" in found or any(map(keeps_rounds, parts))


def circumstances(results: dict) -> str:
    """One paragraph: machine, versions, commit, and what an older file does not have."""
    found = results["circumstances"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    machine = found["gpu"] or f"{found['processor']}, {found['cores']} cores"
    older = [] if keeps_rounds(results) else ["medians only"]
    older += [] if "correctness" in found else ["not known to be checked"]
    return "; ".join([machine, found["system"], versions, f"commit {found['commit']}", *older]) + "."


def milliseconds(seconds: float | None) -> str:
    """Three significant figures, a dash where nothing was measured."""
    if seconds is None:
        return "-"
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(slow: float | None, fast: float | None) -> str:
    """How many times longer, a dash where one is missing."""
    return "-" if slow is None or fast is None else f"{slow / fast:,.1f}"


def best(seconds: dict[str, float], name: str) -> float | None:
    """The fastest of the candidates whose name begins like this."""
    return min((value for key, value in seconds.items() if key.startswith(name)), default=None)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def scan_section(results: dict, fast: str) -> str:
    """Tables of the scan on one kind of device; ``fast`` is the backend made for it."""
    parts = [circumstances(results)]
    for key, title in (("forward_s", "Forward"), ("forward_backward_s", "Forward and backward")):
        head = [f"{title}: shape (batch, channels, length)", f"`{fast}`, ms", "`chunked`, ms", "`reference`, ms"]
        head += ["mambapy, ms", "reference / ours", "mambapy / ours"]
        exponentials = any("exponentials" in case[key] for case in results["scans"])
        head += ["ours / exponentials"] * exponentials
        rows = []
        for case in results["scans"]:
            seconds = {name: seconds_of(timing) for name, timing in case[key].items()}
            ours, reference, mambapy = seconds[fast], best(seconds, REFERENCE), seconds.get("mambapy")
            row = [f"({case['batch']}, {case['channels']}, {case['length']:,}), {case['source']}"]
            row += [milliseconds(x) for x in (ours, seconds.get("chunked"), reference, mambapy)]
            row += [ratio(reference, ours), ratio(mambapy, ours)]
            rows.append(row + [ratio(ours, seconds.get("exponentials"))] * exponentials)
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def peaks_of(networks: dict[str, dict]) -> list[str]:
    """Which peaks were measured of all networks; older files lack that of tensors."""
    return [key for key in ("tensor_peak_bytes", "peak_bytes") if all(key in row for row in networks.values())]


def network_section(results: dict) -> str:
    """Tables of the networks."""
    parts, last = [], None
    for case in results["networks"]:
        measured_on = circumstances(case if "circumstances" in case else results)
        if measured_on != last:
            parts.append(measured_on)
        last = measured_on
        patch = " × ".join(map(str, case["patch"]))
        head = [f"{case['what'].capitalize()}, {patch}, batch {case['batch']}", "seconds", "times PlainConvUNet"]
        keeps = all("kept_bytes" in row for row in case["networks"].values())
        sizes = (["kept_bytes"] if keeps else []) + peaks_of(case["networks"])
        head += [SIZES[key] for key in sizes] + ["parameters"]
        rows = [
            [name, f"{row['seconds']:.3g}", f"{row['ratio']:.2f}"]
            + [f"{row[key] / 2**20:,.0f}" for key in sizes]
            + [f"{row['parameters']:,}"]
            for name, row in case["networks"].items()
        ]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def prediction_section(results: dict) -> str:
    """Tables of one patch on the CPU, by number of threads."""
    parts = []
    for case in results["networks"]:
        head = [f"Prediction, {' × '.join(map(str, case['patch']))}, batch 1", "LoG-VMamba, ms", "torch's own way, ms"]
        head += [
            "PlainConvUNet, ms",
            "LoG-VMamba / own way",
            "LoG-VMamba / PlainConvUNet",
            "difference, largest",
            "root mean square",
        ]
        differences = [f"{case['differences'][kind]:.1e}" for kind in ("largest", "root_mean_square")]
        rows = []
        for threads, timings in case["threads"].items():
            ours, own, plain = (timings[name]["seconds"] for name in ("LoG-VMamba", "torch's own way", "PlainConvUNet"))
            row = [f"{threads} thread{'s' * (threads != '1')}", *map(milliseconds, (ours, own, plain))]
            rows.append([*row, f"{ours / own:.2f}", f"{ours / plain:.2f}", *differences])
        parts += [circumstances(case), table(head, rows)]
    return "\n\n".join(parts)


def peers_page(stored: dict[str, dict]) -> str:
    """The page about all networks."""
    parts = [PEERS_INTRODUCTION.strip()]
    for device in ("cpu", "cuda"):
        if f"peers_{device}" not in stored:
            continue
        parts += [f"## {device.upper()}", f"`python benchmarks/bench_network.py --peers --device {device}`"]
        for case in stored[f"peers_{device}"]["networks"]:
            patch = " × ".join(map(str, case["patch"]))
            head = [f"{patch}, batch {case['batch']}", "parameters", "GMAC", "seconds per step", "times PlainConvUNet"]
            peaks = peaks_of(case["networks"])
            head += [*(SIZES[key] for key in peaks), "prediction, 10³ voxels/s"]
            rows = [
                [name, f"{row['parameters']:,}", f"{row['multiply_adds'] / 1e9:.1f}", f"{row['step']['seconds']:.3g}"]
                + [f"{row['step']['ratio']:.2f}", *(f"{row[key] / 2**20:,.0f}" for key in peaks)]
                + [f"{row['prediction']['voxels_per_second'] / 1e3:,.0f}"]
                for name, row in case["networks"].items()
            ]
            parts += [circumstances(case), table(head, rows), *in_words(case["networks"])]
        if device == "cpu" and (spread := measured_twice(stored)):
            parts.append(spread)
    return "\n\n".join(parts) + "\n"


def measured_twice(stored: dict[str, dict]) -> str:
    """How far a step of LoG-VMamba against nnU-Net's network lies apart in the two files that have it; "" without."""
    steps = [case for case in stored.get("network_cpu", {}).get("networks", ()) if case["what"] == "training step"]
    ratios = {(*case["patch"], case["batch"]): case["networks"]["LoG-VMamba"]["ratio"] for case in steps}
    said = [
        f"{row['step']['ratio']:.2f} here and {ratios[size]:.2f} there at {' × '.join(map(str, case['patch']))}"
        for case in stored["peers_cpu"]["networks"]
        if (size := (*case["patch"], case["batch"])) in ratios
        and (row := case["networks"].get(catalogue.DEFAULT.trainer)) is not None
    ]
    if not said:
        return ""
    return (
        "[Whole networks](benchmarks.md#whole-networks-cpu) were timed apart, at other commits and other times, and "
        f"figures differ: a step of {catalogue.DEFAULT.trainer} takes, times PlainConvUNet, {', and '.join(said)}. "
        "Differences between two networks that are no larger than this say nothing."
    )


def in_words(networks: dict[str, dict]) -> list[str]:
    """How a step of LoG-VMamba compares with U-Mamba-Enc's, and that with its own on the sequential scan."""
    step = {name: row["step"]["seconds"] for name, row in networks.items()}
    ours, enc = catalogue.DEFAULT.trainer, catalogue.row("UMambaEnc").trainer
    said = []
    if ours in step and enc in step:
        said.append(f"A step of {ours} takes {step[ours] / step[enc]:.2f} times that of {enc}.")
        if "tensor_peak_bytes" in peaks_of(networks):
            ratio_of_peaks = networks[ours]["tensor_peak_bytes"] / networks[enc]["tensor_peak_bytes"]
            said.append(f"Its tensors need {ratio_of_peaks:.2f} times the memory of those of {enc}.")
    if f"{enc}, sequential scan" in step:
        times = step[f"{enc}, sequential scan"] / step[enc]
        said.append(f"With our scan {enc} takes a step {times:.0f} times as fast as with the sequential one.")
    return said


def conversion_section(results: dict) -> str:
    """Seconds of the converters with one worker process and with two."""
    head = ["Converter", "files", "MiB", "`--jobs 1`, s", "`--jobs 2`, s", "times as fast"]
    rows = [
        [row["data_set"], f"{row['files']:,}", f"{row['bytes'] / 2**20:,.0f}"]
        + [f"{seconds_of(row['seconds'][jobs]):.3g}" for jobs in ("1", "2")]
        + [f"{row['speedup']:.2f}"]
        for row in results["conversions"]
    ]
    return f"{circumstances(results)}\n\n{table(head, rows)}"


def gpu_scan_section(results: dict) -> str:
    """Seconds, floors and memory of the scan on a GPU, beside mamba-ssm where it was there."""
    rates = next((row["ceilings"] for row in results["rows"] if "ceilings" in row), None)
    scans = [row for row in results["rows"] if "source" in row]
    if rates is None or not scans:
        return ""
    copied, exponentials = (rates[name] / 1e12 for name in ("bytes_per_s", "exponentials_per_s"))
    limits = f"A copy moves {copied:.2f} TB/s, the special-function units give {exponentials:.2f} T exponentials/s."
    parts = [circumstances(results), limits]
    vendor = ("mamba-ssm", "mamba-ssm, transposed")
    for key, title in (("forward", "Forward"), ("forward_backward", "Forward and backward")):
        head = [f"{title}: shape (batch, channels, length)", "`triton`, ms", *(f"{name}, ms" for name in vendor)]
        head += ["mamba-ssm / ours", "ours / floor", "peak, MiB", "peak of mamba-ssm, MiB"]
        rows = []
        for case in scans:
            found = {name: case[name][key] for name in ("triton", *vendor) if name in case}
            seconds = {name: row["seconds"] for name, row in found.items()}
            ours = seconds.get("triton")
            row = [f"({case['batch']}, {case['channels']}, {case['length']:,}), {case['source']}"]
            row += [milliseconds(x) for x in (ours, *map(seconds.get, vendor))]
            row += [ratio(seconds.get(vendor[0]), ours), ratio(ours, case["floor_s"][key])]
            peaks = [found.get(name, {}).get("peak_bytes") for name in ("triton", vendor[0])]
            rows.append(row + ["-" if peak is None else f"{peak / 2**20:,.0f}" for peak in peaks])
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def gpu_network_section(results: dict) -> str:
    """The tables of ``network_section`` from rows of turns; a network without a turn has no line."""
    case = next((row for row in results["rows"] if "case" in row), None)
    sizes = {row["network"]: row for row in results["rows"] if "peak_bytes" in row}
    turns: dict[str, list[float]] = {}
    for row in results["rows"]:
        if "turn" in row:
            turns.setdefault(row["network"], []).append(row["seconds"])
    if case is None or "PlainConvUNet" not in turns:
        return ""
    seconds = {name: timing(values) for name, values in turns.items()}
    networks = {
        name: sizes[name] | found | {"ratio": found["seconds"] / seconds["PlainConvUNet"]["seconds"]}
        for name, found in seconds.items()
    }
    return network_section({"circumstances": results["circumstances"], "networks": [case | {"networks": networks}]})


def gpu_checks_section(steps: dict[str, dict]) -> str:
    """What else was found on a GPU, in a line for each, and which steps are open."""
    lines = []
    rows = {name: step["rows"] for name, step in steps.items()}
    for row in rows.get("warm", ()):
        if "kernels" in row:
            lines.append(f"{row['kernels']} kernels, compiled or loaded at once in {row['seconds_to_compile']:.1f} s.")
        if "registers" in row:
            found = f"{row['registers']} registers, {row['spills']} spilled, room for {row['room']} programs"
            lines.append(f"`{row['kernel']}`: {found}.")
    lines += [
        f"{row['left_out']} was not compared: {row['because']}"
        for row in rows.get("correctness", ())
        if "left_out" in row
    ]
    compared = [row for row in rows.get("correctness", ()) if "errors" in row]
    for dtype in dict.fromkeys(row["dtype"] for row in compared):
        errors = [
            max(row["errors"].values(), default=float("inf"))
            for row in compared
            if (row["backend"], row["dtype"]) == ("triton", dtype)
        ]
        if errors:
            lines.append(f"`triton` against float64, {dtype}: largest relative error {max(errors):.0e}.")
    for row in rows.get("profile", ())[:5]:
        lines.append(
            f"{row['share']:.0%} of a training step of LoG-VMamba: `{row['operation']}`, {row['calls']} calls."
        )
    for row in rows.get("amp", ()):
        if "losses" in row:
            losses = f"loss {row['losses'][0]:.3f} to {row['losses'][-1]:.3f}, {row['skipped_steps']} skipped"
            lines.append(f"{row['steps']} training steps in {row['dtype']}: {losses}.")
        else:
            lines.append(f"The losses are never further apart than {row['largest_difference']:.3f} of the first one.")
    for row in rows.get("memory", ()):
        patch = "×".join(map(str, row["patch"]))
        estimated, peak = row["estimated_bytes"] / 2**20, row["peak_bytes"]
        measured = "not measured" if peak is None else f"measured {peak / 2**20:,.0f}"
        lines.append(
            f"Memory of a training step of {row['network']}, {patch}, batch {row['batch']}: estimated {estimated:,.0f} "
            f"MiB, {measured}."
        )
    for row in rows.get("hippocampus", ()):
        if row["epoch_seconds"]:
            epoch = sorted(row["epoch_seconds"])[len(row["epoch_seconds"]) // 2]
            dice = ", ".join(f"{value:.3f}" for value in row["dice"].values())
            found = f"Dice {dice}" if dice else f"stopped after {len(row['epoch_seconds'])} epochs"
            lines.append(
                f"`{row['trainer']}` on hippocampus, fold 0, beside two others: {found}, {epoch:.1f} s per epoch."
            )
    for row in rows.get("compile", ()):
        breaks = len(row["graph_breaks"])
        lines.append(f"`torch.compile` at {row['side']}³: {row['graphs']} graphs, {breaks} graph breaks.")
    commit = next(iter(steps.values()))["circumstances"]["commit"] if steps else None
    left = gpu_journal.missing(steps, commit)
    if left:
        lines.append(f"Open, or stopped before its end: {', '.join(left)}.")
    return "\n".join(f"- {line}" for line in lines)


def draw(results: dict) -> None:
    """Time against length, both axes logarithmic, forward and forward + backward."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for panel, key, title in zip(panels, ("forward_s", "forward_backward_s"), ("forward", "forward and backward")):
        curves: dict[str, list[tuple[int, float]]] = {}
        for case in results["growth"]:
            timings = {name: seconds_of(timing) for name, timing in case[key].items()}
            fastest_reference = best(timings, REFERENCE)
            for name, seconds in timings.items():
                if not name.startswith(REFERENCE) and name != "exponentials":
                    curves.setdefault(name, []).append((case["length"], seconds))
            if fastest_reference is not None:
                curves.setdefault(REFERENCE, []).append((case["length"], fastest_reference))
        for name, points in curves.items():
            panel.loglog(*zip(*points), marker="o", label=name)
        panel.set(title=title, xlabel="sequence length, tokens")
        panel.grid(True, which="major", alpha=0.3)
    panels[0].set_ylabel("seconds")
    panels[0].legend(frameon=False)
    case = results["growth"][0]
    figure.suptitle(f"Selective scan, batch {case['batch']}, {case['channels']} channels, {case['state']} states")
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=130)
    plt.close(figure)


def page(stored: dict[str, dict]) -> str:
    """The whole page."""
    parts = [INTRODUCTION.strip()]
    if "scan_cpu" in stored:
        parts += ["## Selective scan, CPU", "`python benchmarks/bench_scan.py`; 16 states."]
        parts += [scan_section(stored["scan_cpu"], "numba"), LEGEND]
        parts.append("![Time of the scan against the length of the sequence](figures/scan_growth.png)")
    if "network_cpu" in stored:
        parts += ["## Whole networks, CPU", "`python benchmarks/bench_network.py`"]
        parts.append(network_section(stored["network_cpu"]))
    if "prediction_cpu" in stored:
        parts += ["## One patch, CPU", "`python benchmarks/bench_network.py --prediction`", ONE_PATCH]
        parts.append(prediction_section(stored["prediction_cpu"]))
    if "conversion_cpu" in stored:
        parts += ["## Data set converters, CPU", "`python benchmarks/bench_conversion.py`; generated sources."]
        parts.append(conversion_section(stored["conversion_cpu"]))
    parts += ["## GPU", "`bash benchmarks/gpu_proof.sh prepare`, then `bash benchmarks/gpu_proof.sh run`"]
    steps = {name.removeprefix("gpu_"): step for name, step in stored.items() if name.startswith("gpu_")}
    if not steps:
        parts.append(NO_GPU)
        return "\n\n".join(parts) + "\n"
    scans = gpu_scan_section(steps["scan"]) if "scan" in steps else ""
    parts += ["### Selective scan, float16", scans] if scans else []
    networks = [gpu_network_section(steps[name]) for name in ("network", "network_2d") if name in steps]
    parts += ["### Whole networks, mixed precision", *filter(None, networks)] if any(networks) else []
    parts += ["### Checks", gpu_checks_section(steps)]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write the page and the plot, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date")
    parser.add_argument("--show", type=Path, metavar="FOLDER", help="print the page for results in another folder")
    args = parser.parse_args()
    folder = args.show or RESULTS
    stored = stored_in(folder)
    if not stored:
        sys.exit(f"tables: there are no results in {folder}; run benchmarks/bench_scan.py first")
    if why := refusal(stored):
        sys.exit(f"tables: {why}")
    pages = {PAGE: page(stored)}
    if any(name.startswith("peers_") and not name.endswith("_quick") for name in stored):
        pages[PEERS_PAGE] = peers_page(stored)
    for file, text in pages.items():
        if args.show:
            print(text, end="")
        elif args.check:
            if not file.exists() or file.read_text(encoding="utf-8") != text:
                sys.exit(f"tables: {file.name} is not what the results give; run python {Path(__file__).name}")
        else:
            file.write_text(text, encoding="utf-8")
            print(file)
    if "scan_cpu" in stored and not (args.show or args.check):
        draw(stored["scan_cpu"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
