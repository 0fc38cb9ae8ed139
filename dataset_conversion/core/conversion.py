"""What every converter does with its cases: check all of them, then write a data set, scans or predictions.

A converter finds its cases and names a layout that reads and writes them (``volumes.Volumes`` for NIfTI,
``pictures.Pictures`` and its kin for 2D); :func:`write_dataset` does the rest. Nothing is written until every file has
been read and checked, and nothing appears under its final name until all of it is there.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_conversion.core import reporting, sources, splitting, staging
from dataset_conversion.core.cases import (
    SHOWN,
    Case,
    Checker,
    ConversionError,
    Description,
    Facts,
    Layout,
    Options,
    Restorer,
    Skipped,
)
from dataset_conversion.core.workers import EachCase, workers

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _check(layout: Checker, case: Case) -> Facts | str:
    try:
        return layout.check(case)
    except ConversionError as error:
        return str(error)


def check_cases(cases: Sequence[Case], layout: Checker, each_case: EachCase) -> list[Facts]:
    """Check all cases; return what was found, in their order.

    Raises:
        ConversionError: With the sentence of the first bad case and the names of the others.
    """
    results = list(each_case(functools.partial(_check, layout), cases, "check"))
    problems = {case.name: result for case, result in zip(cases, results) if isinstance(result, str)}
    if problems:
        first, *others = problems
        text = problems[first]
        if others:
            named = ", ".join(others[:SHOWN]) + (", …" if len(others) > SHOWN else "")
            text = f"{text.rstrip('.')} (and {len(others)} more case(s) with problems: {named})."
        raise ConversionError(text)
    return results


def require_free_id(name: str, folders: Iterable[Path | None]) -> None:
    """Raise a ConversionError if another data set has the id of ``name``; nnU-Net would refuse both later.

    The same holds for ids that begin alike, as 100 and 1001: nnU-Net goes by how names begin.
    """
    prefix = name.split("_")[0]
    number = prefix.removeprefix("Dataset")
    for folder in folders:
        if folder is None or not folder.is_dir():
            continue
        for other in sorted(folder.glob("Dataset*_*")):
            if not other.is_dir() or other.name == name:
                continue
            theirs = other.name.split("_")[0]
            if theirs == prefix:
                raise ConversionError(f"Id {number} is taken by {other}; choose another one with -d.")
            if theirs.startswith(prefix) or prefix.startswith(theirs):
                raise ConversionError(
                    f"Id {number} begins like that of {other}, which nnU-Net takes for the same; choose another one "
                    "with -d."
                )


def write_dataset(
    cases: Sequence[Case],
    description: Description,
    layout: Layout,
    *,
    source: Path,
    dataset_id: int,
    nnunet_raw: Path,
    nnunet_preprocessed: Path | None,
    test_cases: Sequence[Case] = (),
    splits: Sequence[Mapping[str, Sequence[str]]] | None = None,
    protocol: str = "crossval",
    skipped: Sequence[Skipped] = (),
    notes: Sequence[str] = (),
    overwrite: bool = False,
    jobs: int = 1,
    dry_run: bool = False,
) -> Path:
    """Check everything, then write ``DatasetXXX_Name`` and its splits, and report what was done.

    Args:
        source: Where the cases come from; never changed.
        nnunet_preprocessed: Gets ``DatasetXXX_Name/splits_final.json``, where nnU-Net looks for it; None writes none.
        test_cases: Cases for ``imagesTs``; labelled ones for ``labelsTs`` as well.
        splits: Folds that are prescribed; by default :func:`make_splits` makes them from groups and strata.
        protocol: Name of the choice of training and test cases, for the report.
        skipped: What was seen in the source and left out.
        notes: Sentences for the report: what was assumed or chosen.
        overwrite: Replace an existing data set and its splits.
        dry_run: Check and report only.

    Returns:
        The folder of the data set in ``nnunet_raw``.

    Raises:
        ConversionError: For anything wrong in source or target; nothing has been written then.
    """
    name = f"Dataset{dataset_id:03d}_{description.name}"
    target = Path(nnunet_raw).absolute() / name
    splits_file = Path(nnunet_preprocessed).absolute() / name / "splits_final.json" if nnunet_preprocessed else None
    if nnunet_preprocessed and Path(nnunet_raw).resolve() == Path(nnunet_preprocessed).resolve():
        raise ConversionError(
            f"nnUNet_raw and nnUNet_preprocessed are the same folder {nnunet_raw}; give each a folder of its own."
        )
    staging.require_apart(source, target)
    results = os.environ.get("nnUNet_results")  # noqa: SIM112 - nnU-Net's name; it need not be set here
    trained = Path(results) if results else None
    require_free_id(name, (target.parent, splits_file.parents[1] if splits_file else None, trained))
    for written in (target, splits_file) if splits_file else (target,):
        staging.require_outside(source, written)
        staging.require_writable(written, dry_run=dry_run)
    everything = [*cases, *test_cases]
    _require_unique(everything)
    by_name = {case.name: case for case in cases}
    if splits is None:
        splits = splitting.make_splits(
            by_name, lambda case: by_name[case].group or case, lambda case: by_name[case].stratum
        )
    splitting.require_groups_apart(splits, cases, test_cases)
    splits_text = json.dumps(splits, indent=2) + "\n"

    def require_free_targets() -> None:
        staging.require_free_target(target, overwrite)
        if splits_file and splits_file.is_dir():
            raise ConversionError(f"{splits_file} is a folder, where nnU-Net reads a file; move it away.")
        if splits_file and not overwrite and splits_file.exists() and splits_file.read_bytes() != splits_text.encode():
            raise ConversionError(f"{splits_file} holds other splits; use --overwrite to replace it.")

    if not dry_run:
        require_free_targets()
    with contextlib.ExitStack() as stack:
        each_case = stack.enter_context(workers(jobs))
        facts = check_cases(everything, layout, each_case)
        reader, about_reader = _reader_of_all(everything, facts, layout)
        report = reporting.make_report(
            name,
            description,
            layout,
            Path(source),
            everything,
            facts,
            len(cases),
            len(splits),
            protocol,
            skipped,
            [*notes, *_remarks(everything, facts), *about_reader],
        )
        reporting.print_report(report, layout)
        if dry_run:
            reporting.say("  dry run: the cases are in order, nothing was written")
            require_free_targets()  # so late, because a dry run says what is wrong with the cases all the same
            for written in (target, splits_file) if splits_file else (target,):
                reporting.say(f"  {staging.foretold(written)}")
            return target
        publish_splits = lambda: None  # noqa: E731
        if splits_file:
            staged_splits = stack.enter_context(staging.staged_file(splits_file))
            with staging.writing(splits_file):
                staged_splits.write_text(splits_text)
            publish_splits = functools.partial(_publish, staged_splits, splits_file)
        folder = stack.enter_context(staging.staged_folder(target, overwrite=overwrite, then=publish_splits))
        write_cases(cases, layout, folder, "Tr", each_case)
        write_cases(test_cases, layout, folder, "Ts", each_case)
        with staging.writing(folder / "dataset.json"):
            _write_dataset_json(folder, name, description, layout.file_ending, reader, len(cases))
        with staging.writing(folder / reporting.REPORT):
            (folder / reporting.REPORT).write_text(
                json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
    reporting.say(f"  written: {target}")
    if splits_file:
        sizes = "/".join(str(len(fold["val"])) for fold in splits)
        reporting.say(f"  {len(splits)} folds (validation cases {sizes}): {splits_file}")
    reporting.print_notice(description)
    return target


def _publish(staged: Path, target: Path) -> None:
    with staging.writing(target):
        staged.replace(target)


def _require_unique(cases: Sequence[Case]) -> None:
    seen: dict[str, Case] = {}
    for case in cases:
        other = seen.setdefault(case.name, case)
        if other is not case:
            raise ConversionError(
                f"Case {case.name} occurs twice, as {other.images[0]} and as {case.images[0]}; give one copy as source."
            )


def _remarks(cases: Sequence[Case], facts: Sequence[Facts]) -> list[str]:
    """What the check remarked, each once, with the number of cases and the first of them."""
    found: dict[str, list[str]] = {}
    for case, fact in zip(cases, facts):
        for remark, path in fact.remarks.items():
            found.setdefault(remark, []).append(f"{path.name} of case {case.name}")
    return [f"{remark}: {len(where)} case(s), first {where[0]}" for remark, where in found.items()]


def _reader_of_all(cases: Sequence[Case], facts: Sequence[Facts], layout: Layout) -> tuple[str, list[str]]:
    """That of nnU-Net's readers which reads every case, and a note if it is not the usual one.

    Raises:
        ConversionError: If there is none.
    """
    usual = layout.reader_writer
    needs = {case.name: fact.readers for case, fact in zip(cases, facts) if fact.readers}
    known = dict.fromkeys([usual, *(reader for readers in needs.values() for reader in readers)])
    fitting = [reader for reader in known if all(reader in readers for readers in needs.values())]
    if not fitting:
        first = {reader: next(name for name, readers in needs.items() if reader not in readers) for reader in known}
        raise ConversionError(
            "A data set has one reader, and none of nnU-Net's reads every case: "
            + ", ".join(f"{reader} does not read {name}" for reader, name in first.items())
            + "; save these again with a usual header, or leave one out."
        )
    note = f"nnU-Net reads this data set with {fitting[0]}, since {usual} does not read every case"
    return fitting[0], [note] if fitting[0] != usual else []


def _write_dataset_json(
    folder: Path, name: str, description: Description, file_ending: str, reader: str, num_training: int
) -> None:
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json  # late, since workers need none

    generate_dataset_json(
        str(folder),
        channel_names={str(index): channel for index, channel in enumerate(description.channels)},
        labels=dict(description.labels),
        num_training_cases=num_training,
        file_ending=file_ending,
        regions_class_order=description.regions_class_order,
        dataset_name=name,
        reference=description.reference,
        release=description.release,
        description=description.text,
        overwrite_image_reader_writer=reader,
        license=description.licence,
        converted_by="dataset_conversion of nnunet-logvmamba",
    )


def write_test_images(
    cases: Sequence[Case],
    layout: Layout,
    target: Path,
    *,
    source: Path,
    **options: "Unpack[Options]",
) -> Path:
    """Check unlabelled cases and write them into ``target`` under the names that ``nnUNetv2_predict -i`` expects.

    Args:
        source: Where the cases come from; never changed.
        options: ``overwrite``, replace a target that is not empty; ``jobs``, worker processes; ``dry_run``, check only.

    Raises:
        ConversionError: For anything wrong in source or target; nothing has been written then.
    """
    staging.require_outside(source, target)
    cases = [replace(case, mask=None) for case in cases]
    _require_unique(cases)
    return _write_each(
        cases,
        layout,
        _write_images,
        target,
        functools.partial(_notes_to_predict, layout),
        what="case(s)",
        verb="write",
        done="written for nnUNetv2_predict",
        source=source,
        **options,
    )


def _notes_to_predict(layout: Layout, cases: Sequence[Case], facts: Sequence[Facts]) -> list[str]:
    """Remarks, and which cases need a model with another reader than the usual one."""
    notes, usual = _remarks(cases, facts), layout.reader_writer
    others = [
        (case.name, fact.readers[0]) for case, fact in zip(cases, facts) if usual not in (fact.readers or [usual])
    ]
    if others:
        name, reader = others[0]
        notes.append(
            f"{len(others)} case(s), first {name}, can be predicted only by a model whose plans.json says "
            f'"image_reader_writer": "{reader}"; with {usual} nnU-Net ends there'
        )
    return notes


def _write_images(layout: Layout, folder: Path, case: Case) -> None:
    layout.write_images(case, folder)


def _write_each(
    cases: Sequence[Case],
    layout: Checker,
    write: Callable,
    target: Path,
    notes: Callable[[Sequence[Case], Sequence[Facts]], list[str]],
    *,
    what: str,
    verb: str,
    done: str,
    source: Path,
    overwrite: bool = False,
    jobs: int = 1,
    dry_run: bool = False,
) -> Path:
    """Check cases and write each into a folder that appears once it is complete.

    Args:
        write: Called with ``layout``, the folder and a case.
        notes: What to say of all that was checked.
        what: Noun for the cases, ``verb`` for the progress bar, ``done`` for the last line.
    """
    target = Path(target)
    staging.require_apart(source, target)
    staging.require_writable(target, dry_run=dry_run)
    if not dry_run:
        staging.require_free_target(target, overwrite)
    with workers(jobs) as each_case:
        facts = check_cases(cases, layout, each_case)
        for note in notes(cases, facts):
            reporting.say(f"note: {note}")
        if dry_run:
            reporting.say(f"dry run: {len(cases)} {what} are in order, nothing was written")
            staging.require_free_target(target, overwrite)
            reporting.say(staging.foretold(target))
            return target
        with staging.staged_folder(target, overwrite=overwrite) as folder:
            for _ in each_case(functools.partial(write, layout, folder), cases, verb):
                pass
    reporting.say(f"{len(cases)} {what} {done}: {target}")
    return target


def find_predictions(predictions: Path, ending: str) -> dict[str, Path]:
    """The predictions in a folder by case name, sorted; nnU-Net's JSON files and probabilities are passed over.

    Images with other endings are counted in a note.

    Raises:
        ConversionError: If there are none.
    """
    predictions = sources.require_source(predictions)
    found = {
        path.name[: -len(ending)]: path
        for path in sorted(predictions.iterdir())
        if path.name.lower().endswith(ending) and not path.name.startswith(".")
    }
    sources.say_unread(sources.images_of_others(predictions, (ending,)))
    if not found:
        raise ConversionError(f"There are no predictions (*{ending}) in {predictions}.")
    return found


def write_restored(
    names: Mapping[Path, str],
    restorer: Restorer,
    target: Path,
    *,
    source: Path,
    **options: "Unpack[Options]",
) -> Path:
    """Check predictions and write them into ``target`` as the data owner wants them.

    Args:
        names: Prediction to its path in ``target``.
        source: The folder of the predictions.
        options: ``overwrite``, replace a target that is not empty; ``jobs``, worker processes; ``dry_run``, check only.

    Raises:
        ConversionError: For anything wrong in predictions or target; nothing has been written then.
    """
    owners: dict[str, Path] = {}
    for path, name in names.items():
        if name in owners:
            raise ConversionError(f"{owners[name]} and {path} would both become {name}; restore them one by one.")
        owners[name] = path
    cases = [Case(path.name, (path,), about={"submit": name}) for path, name in names.items()]
    return _write_each(
        cases,
        restorer,
        _restore,
        target,
        _remarks,
        what="prediction(s)",
        verb="restore",
        done="restored",
        source=source,
        **options,
    )


def _restore(restorer: Restorer, folder: Path, case: Case) -> None:
    target = folder / case.about["submit"]
    with staging.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    restorer.write(case, target)


def write_cases(cases: Sequence[Case], layout: Layout, dataset: Path, part: str, each_case: EachCase) -> None:
    """Write checked cases into ``images<part>`` and their labels into the folders of the layout."""
    if not cases:
        return
    folders = {f"images{part}"} | set(layout.label_folders(part) if any(case.masks for case in cases) else ())
    for folder in sorted(folders):
        with staging.writing(dataset / folder):
            (dataset / folder).mkdir(exist_ok=True)
    for _ in each_case(functools.partial(_write_case, layout, dataset, part), cases, "write"):
        pass


def _write_case(layout: Layout, dataset: Path, part: str, case: Case) -> None:
    layout.write_images(case, dataset / f"images{part}")
    if case.masks:
        layout.write_labels(case, dataset, part)
