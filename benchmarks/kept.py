"""What finished trainings leave in words and numbers, in one file that goes from machine to machine.

A table of ``tables.sh`` may take longer than one machine is there. ``compare`` needs neither weights nor segmentations,
so with ``--keep FILE`` a training that ended elsewhere counts, and is not run again.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from pathlib import Path, PurePath

from nnunet_logvmamba import files
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.results.logs import read_text_logs
from nnunet_logvmamba.results.record import RECORD_NAME, read_record
from nnunet_logvmamba.results.runs import SOURCES, SUMMARY, folds_of, is_begun, is_finished

OF_A_MODEL = "plans.json", "dataset.json"
VALIDATION = "validation"
OF_A_FOLD = RECORD_NAME, f"{VALIDATION}/{SUMMARY}", *(f"{VALIDATION}/{source.file}" for source in SOURCES)
ABOUT = "kept.json"
"""What a fold that was restored says of the machine that it was trained on, and its curves: its logs are not here."""
PATHS = "prediction_file", "reference_file"
FORMAT = 1


def read(file: Path) -> dict[str, dict]:
    """Give the trainings in a file by ``DATASET/MODEL/fold_N``; none if it does not exist.

    Raises:
        UserError: If it is no such file.
    """
    try:
        content = files.read_json(file, "restore it, or name another with --keep")
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{file} does not hold what --keep writes: name another file")
    return content["trainings"]


def restore(file: Path, results: Path, models: Container[str]) -> list[str]:
    """Write the trainings of these models that ``nnUNet_results`` does not have there, and give their names.

    What was trained here, or has begun to be, stays; a fold that an earlier call did not write to its end is written.
    """
    restored = []
    for name, training in read(file).items():
        fold = results / PurePath(name)
        if fold.parent.name not in models or is_finished(fold) or is_begun(fold):
            continue
        texts = {fold.parent / part: training["model"][part] for part in OF_A_MODEL}
        texts |= {fold / part: content for part, content in training["fold"].items()}
        texts[fold / ABOUT] = {"circumstances": training["circumstances"], "curves": training["curves"]}
        # The summary last: with it the training counts.
        for path, content in sorted(texts.items(), key=lambda item: item[0].name == SUMMARY):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                files.replace_text(path, json.dumps(content, indent=4))
        restored.append(name)
    return restored


def keep(file: Path, results: Path, models: Container[str]) -> list[str]:
    """Add the finished trainings of these models below ``nnUNet_results`` to a file, and give the names of new ones.

    Other processes may do the same with the same file. Circumstances are those of this call; what a training was made
    with stands in its record.
    """
    finished = dict(_finished(results, models))
    if not finished.keys() - read(file).keys():
        return []
    from measure import circumstances  # it needs torch, a table that is only planned does not

    here = circumstances(None)
    with files.locked(file.resolve().parent):
        trainings = read(file)
        new = {name: fold for name, fold in finished.items() if name not in trainings}
        for name, fold in new.items():
            elsewhere = _text(fold / ABOUT) if (fold / ABOUT).is_file() else {}
            trainings[name] = {
                "circumstances": here,
                "curves": read_text_logs(fold),
                **elsewhere,
                "model": {part: _text(fold.parent / part) for part in OF_A_MODEL},
                "fold": {part: _text(fold / part) for part in OF_A_FOLD if (fold / part).is_file()},
            }
        lines = (f"  {json.dumps(name)}: {json.dumps(trainings[name])}" for name in sorted(trainings))
        head = f'{{"format": {FORMAT}, "circumstances": {json.dumps(here)}, "trainings": {{\n'
        files.replace_text(file, head + ",\n".join(lines) + "\n}}\n")
    return list(new)


def _finished(results: Path, models: Container[str]) -> Iterator[tuple[str, Path]]:
    for model in sorted(results.glob("Dataset*/*__*__*")):
        for fold in folds_of(model) if model.name in models else ():
            if is_finished(fold) and _is_scored(fold):
                yield fold.relative_to(results).as_posix(), fold


def _is_scored(fold: Path) -> bool:
    """False while a validation still writes what comes after nnU-Net's summary; the record is the last of it."""
    record = None if (fold / ABOUT).is_file() else read_record(fold)
    return record is None or record.get("validated_epochs") is not None


def _text(path: Path) -> dict:
    content = json.loads(path.read_text(encoding="utf-8"))
    if path.name == SUMMARY:  # nnU-Net names its files with their folders, which are this machine's
        for entry in content["metric_per_case"]:
            entry |= {key: PurePath(entry[key]).name for key in PATHS if key in entry}
    return content
