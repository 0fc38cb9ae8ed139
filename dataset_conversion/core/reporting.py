"""The report that a conversion prints and leaves in the data set."""

import json
import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataset_conversion.core.cases import SHOWN, Case, ConversionError, Description, Facts, Layout, Skipped

REPORT = "conversion_report.json"


def read_report(nnunet_raw: Path, dataset_id: int) -> dict:
    """The report that the conversion left in the data set with this id.

    Raises:
        ConversionError: If there is no such data set, or it has no report that can be read.
    """
    prefix = f"Dataset{dataset_id:03d}_"
    folders = [path for path in sorted(Path(nnunet_raw).glob(f"{prefix}*")) if path.is_dir()]
    if len(folders) != 1:
        raise ConversionError(f"There is no data set {prefix}* in {nnunet_raw}; name the id of the conversion with -d.")
    path = folders[0] / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        cases = report["cases"]
        if not isinstance(cases, dict) or not all(isinstance(case, dict) for case in cases.values()):
            raise TypeError("its cases are no table of facts")
    except FileNotFoundError:
        raise ConversionError(f"There is no {path}; convert the data set first.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{path} cannot be read ({error}); convert the data set again.") from None
    return report


def make_report(
    name: str,
    description: Description,
    layout: Layout,
    source: Path,
    cases: Sequence[Case],
    facts: Sequence[Facts],
    num_training: int,
    num_folds: int,
    protocol: str,
    skipped: Sequence[Skipped],
    notes: Sequence[str],
) -> dict:
    """Everything that was converted and left out, without dates or places, so that equal sources give equal reports."""
    labelled = [(case, fact) for case, fact in zip(cases, facts) if case.masks]
    training: Counter[int] = Counter()
    testing: Counter[int] = Counter()
    for index, fact in enumerate(facts):
        (training if index < num_training else testing).update(fact.histogram)
    labels = {}
    for source_value, value in sorted(description.label_map.items(), key=lambda item: item[1]):
        labels[str(value)] = {
            "name": _name_of(value, description.labels),
            "source": source_value,
            f"training_{layout.unit}": training[source_value],
            f"test_{layout.unit}": testing[source_value],
        }
    without = {}
    for label in description.labels:
        values = _values_of(label, description.labels)
        if values != {0}:
            absent = [
                case.name
                for case, fact in labelled
                if not any(count and description.label_map[value] in values for value, count in fact.histogram.items())
            ]
            without[label] = absent
    counts: Counter = Counter()
    for fact in facts:
        counts.update(fact.counts)
    return {
        "data_set": name,
        "release": description.release,
        "protocol": protocol,
        "training_cases": num_training,
        "test_cases": {
            "labelled": sum(bool(case.masks) for case in cases[num_training:]),
            "unlabelled": sum(not case.masks for case in cases[num_training:]),
        },
        "groups": len({case.group or case.name for case in cases}),
        "folds": num_folds,
        "labels": labels,
        "cases_without": without,
        "counts": dict(sorted(counts.items())),
        "notes": [printable(note) for note in notes],
        "skipped": [{"path": _relative(skip.path, source), "reason": skip.reason} for skip in skipped],
        "cases": {
            case.name: {
                "part": "Tr" if index < num_training else "Ts",
                "group": case.group or case.name,
                **({"stratum": case.stratum} if case.stratum else {}),
                **case.about,
                "images": [_relative(path, source) for path in case.images],
                "mask": [_relative(path, source) for path in case.masks],
                **{what: count for what, count in sorted(fact.counts.items()) if count},
            }
            for index, (case, fact) in enumerate(zip(cases, facts))
        },
        "citation": description.reference,
        "licence": description.licence,
    }


def _name_of(value: int, labels: Mapping[str, int | list[int]]) -> str:
    """The label of a value; of regions all that it is part of."""
    return ", ".join(name for name in labels if value in _values_of(name, labels))


def _values_of(name: str, labels: Mapping[str, int | list[int]]) -> set[int]:
    values = labels[name]
    return {values} if isinstance(values, int) else set(values)


def _relative(path: Path, source: Path) -> str:
    path = Path(os.path.abspath(path))
    for above in (os.path.abspath(source), os.path.realpath(source)):
        if path.is_relative_to(above):
            return printable(path.relative_to(above).as_posix())
    return printable(path.name)


def printable(name: str) -> str:
    """A file name with the bytes that are no UTF-8 written out, as in ``caf\\xe9.txt``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def say(line: str) -> None:
    """Print a line, on a terminal broken between words where it is too wide."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    print(line)


def print_report(report: Mapping, layout: Layout) -> None:
    """Print the report in short: long lists are cut, the file has them whole."""
    tests = report["test_cases"]
    extra = "".join(f", {count} {what} for testing" for what, count in tests.items() if count)
    remapped = any(str(label["source"]) != value for value, label in report["labels"].items())
    say(f"{report['data_set']} ({report['release']}, protocol {report['protocol']})")
    say(f"  {report['training_cases']} labelled case(s){extra}, {report['groups']} group(s)")
    for value, label in report["labels"].items():
        which = f"source label {label['source']} -> {value}" if remapped else f"label {value}"
        test = f" and {label[f'test_{layout.unit}']:,} for testing" if tests["labelled"] else ""
        say(f"  {which}: {label[f'training_{layout.unit}']:,} {layout.unit}{test} ({label['name']})")
    for label, cases in report["cases_without"].items():
        if cases:
            say(f"  without {label}: {len(cases)} case(s), {_some(cases)}")
    for what, count in report["counts"].items():
        affected = [name for name, case in report["cases"].items() if case.get(what)]
        say(f"  {what}: {count:,}" + (f" in {len(affected)} case(s)" if count else ""))
    for reason in dict.fromkeys(skip["reason"] for skip in report["skipped"]):
        paths = [skip["path"] for skip in report["skipped"] if skip["reason"] == reason]
        say(f"  skipped {len(paths)}: {reason}: {_some(paths)}")
    for note in report["notes"]:
        say(f"  note: {note}")


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:SHOWN]) + (f", … ({len(items) - SHOWN} more)" if len(items) > SHOWN else "")


def print_notice(description: Description) -> None:
    """Print what the data owner asks of everybody who uses the data."""
    say(f"  cite: {description.reference}")
    say(f"  licence: {description.licence}")
    if description.notice:
        say(f"  {description.notice}")
