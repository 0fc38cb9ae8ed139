"""One HTML page about one training: curves, scores, its worst and best cases, commands, versions, configuration."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import (
    PICTURE_ENDINGS,
    CaseError,
    ending_of,
    is_white_at_zero,
    read_image,
    read_labels,
)
from nnunet_logvmamba.evaluation.dataset_json import channels_of, labels_of
from nnunet_logvmamba.plugin.checkpoints import CHECKPOINTS, read_checkpoint
from nnunet_logvmamba.results.page import pictures
from nnunet_logvmamba.results.record import name_alone, read_record
from nnunet_logvmamba.results.runs import (
    SUMMARY,
    SURFACE,
    USUAL_METRICS,
    Run,
    case_of,
    is_finished,
    read_dataset_json,
    read_json,
    read_run,
)
from nnunet_logvmamba.results.statistics import mean_and_standard_error

Read = TypeVar("Read")


@dataclass(frozen=True)
class Sources:
    """Where images and references lie, if not where nnU-Net keeps them; which channel is shown."""

    images: Path | None = None
    references: Path | None = None
    channel: int = 0


def build(
    fold: Path, *, num_cases: int = 3, sources: Sources | None = None, say: Callable[[str], object] = lambda note: None
) -> str:
    """Give the page about a fold; everything is in it, and it loads nothing.

    Args:
        fold: Folder ``fold_X`` of a trained model. Without a final validation, the page has no scores and says so.
        num_cases: Worst cases to show, and as many best ones.
        sources: For the pictures of the cases.
        say: Called with every sentence of the page about something that is not there.

    Raises:
        UserError: If it is no such folder, or a file in it or a wanted image cannot be read.
    """
    sources = sources or Sources()
    if not fold.is_dir() or not re.fullmatch(r"fold_(\d+|all)", fold.name) or fold.parent.name.count("__") != 2:
        raise UserError(f"{fold} is not the folder of a fold: name TRAINER__PLANS__CONFIGURATION/fold_0 or the like")
    fold = fold.resolve()
    plans, dataset_json = read_json(fold.parent / "plans.json"), read_dataset_json(fold.parent)
    try:
        record = read_record(fold)
    except ValueError as error:
        raise UserError(str(error)) from error
    run = read_run(fold) if is_finished(fold) else None
    logging = read_logging(fold)
    if run is None and not logging:
        raise UserError(f"{fold} holds neither a checkpoint nor a log nor a validation: train first")
    page = _Page(fold, plans, dataset_json, record, run, logging, sources, num_cases, say)
    return page.text()


# --- What was logged --------------------------------------------------------------------------------------------------


def read_logging(fold: Path) -> dict[str, list]:
    """Give what was logged per epoch, from a checkpoint or nnU-Net's text logs, which has more; empty without any.

    Keys are nnU-Net's (``train_losses``, ``val_losses``, ``mean_fg_dice``, ``ema_fg_dice``, ``lrs``) and ``seconds``.
    """
    text = _logging_of_text(fold)
    for name in CHECKPOINTS:
        if (fold / name).is_file():
            logging = _logging_of_checkpoint(fold / name)
            if logging is not None:
                return logging if _num_epochs(logging) >= _num_epochs(text) else text
    return text


def _num_epochs(logging: Mapping[str, Sequence]) -> int:
    return sum(isfinite(loss) for loss in logging.get("train_losses", []))


def _logging_of_checkpoint(path: Path) -> dict[str, list] | None:
    """None if the file holds more than numbers and text, which would have to be run to be read."""
    try:
        logging = read_checkpoint(path).get("logging")
    except ValueError:
        return None
    if not isinstance(logging, dict):
        return None
    starts, ends = logging.get("epoch_start_timestamps", []), logging.get("epoch_end_timestamps", [])
    return {**logging, "seconds": [float(end) - float(start) for start, end in zip(starts, ends)]}


_LINES = {
    "train_losses": r"train_loss (\S+)",
    "val_losses": r"val_loss (\S+)",
    "lrs": r"Current learning rate: (\S+)",
    "seconds": r"Epoch time: (\S+) s",
}


def _logging_of_text(fold: Path) -> dict[str, list]:
    epochs: dict[int, dict[str, float]] = {}
    for log in sorted(fold.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime_ns):
        epoch = None
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            begun = re.search(r": Epoch (\d+)\s*$", line)
            if begun:
                epoch = int(begun[1])
                # What follows in an older log was never reached again, or belongs to an earlier training.
                epochs = {earlier: values for earlier, values in epochs.items() if earlier < epoch}
                epochs[epoch] = {}
            for name, pattern in _LINES.items():
                value = re.search(pattern, line)
                if value and epoch is not None:
                    epochs[epoch][name] = float(value[1])
            found = re.search(r"Pseudo dice \[(.*)\]", line)
            if found and epoch is not None:
                numbers = [float(word) for word in re.findall(r"(?<![\w.])\d+\.?\d*(?:e-?\d+)?(?![\w.])", found[1])]
                epochs[epoch]["mean_fg_dice"] = float(np.mean(numbers)) if numbers else nan
    names = (*_LINES, "mean_fg_dice")
    if not epochs:
        return {}
    return {name: [epochs.get(epoch, {}).get(name, nan) for epoch in range(max(epochs) + 1)] for name in names}


# --- The page ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Page:
    fold: Path
    plans: dict
    dataset_json: dict
    record: dict | None
    run: Run | None
    logging: Mapping[str, Sequence]
    sources: Sources
    num_cases: int
    say: Callable[[str], object]

    def text(self) -> str:
        sections = [self._head(), self._curves()]
        if self.run is None:
            sections.append(_section("Scores", "<p>There is no final validation yet.</p>"))
        else:
            sections += [self._scores(), *([self._cases()] if self.num_cases else []), self._every_case()]
        sections += [self._commands(), self._configuration()]
        return _TEMPLATE.format(
            title=_text(f"{self._title()}, {self.fold.name}"), style=_STYLE, body="\n".join(sections)
        )

    def _title(self) -> str:
        return self.fold.parent.name.split("__")[0].removeprefix("nnUNetTrainer") or "nnUNetTrainer"

    def _head(self) -> str:
        trainer, plans, configuration = self.fold.parent.name.split("__")
        dataset = self.plans.get("dataset_name", self.fold.parent.parent.name)
        words = f"{dataset} · {configuration} of {plans} · {self.fold.name.replace('_', ' ')} · trainer {trainer}"
        cards = []
        if self.run is not None:
            for metric in USUAL_METRICS:
                if metric in self.run.scores:
                    means = [self._mean(metric, label) for label in self.run.labels_of(metric)]
                    mean = mean_and_standard_error(means)[0]
                    cards.append((f"mean {metric}{self._unit(metric)}", _number(mean, metric)))
            cards.append(("cases", str(len(self.run.cases))))
        losses = self.logging.get("train_losses") or []
        if len(losses):
            cards.append(("epochs", str(len(losses))))
        if self.logging.get("seconds"):
            cards.append(("median epoch", f"{median(self.logging['seconds']):.1f} s"))
        record = self.record or {}
        if record.get("parameters"):
            cards.append(("parameters", f"{record['parameters'] / 1e6:.2f} M"))
        if record.get("multiply_adds"):
            cards.append(("multiply-adds", f"{record['multiply_adds'] / 1e9:.2f} G"))
        if record.get("peak_memory_bytes"):
            cards.append(("peak memory", f"{record['peak_memory_bytes'] / 2**30:.2f} GiB"))
        shown = "".join(f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for name, value in cards)
        return f"<header><h1>{_text(self._title())}</h1><p>{_text(words)}</p></header>\n<div class=cards>{shown}</div>"

    def _mean(self, metric: str, label: str) -> float:
        return mean_and_standard_error(list(self.run.scores[metric].get(label, {}).values()))[0]

    def _unit(self, metric: str) -> str:
        unit = self.run.settings.get(SURFACE.kind, {}).get("unit") if metric.startswith("HD") else None
        return f" ({unit})" if isinstance(unit, str) else ""

    def _curves(self) -> str:
        if not self.logging.get("train_losses"):
            return _section("Training", "<p>No epoch was logged.</p>")
        picture = pictures.curves(self.logging)
        return _section("Training", _image(picture, "loss, Dice, learning rate and seconds against the epoch"))

    def _scores(self) -> str:
        metrics = [metric for metric in USUAL_METRICS if metric in self.run.scores]
        finite = {
            metric: {
                label: [value for value in self.run.scores[metric].get(label, {}).values() if isfinite(value)]
                for label in self.run.labels_of(metric)
            }
            for metric in metrics
        }
        head = "".join(f"<th>{_text(metric + self._unit(metric))}</th><th>scored</th>" for metric in metrics)
        rows = []
        for label in dict.fromkeys(label for metric in metrics for label in self.run.labels_of(metric)):
            cells = "".join(self._cells_of(finite[metric], metric, label) for metric in metrics)
            rows.append(f"<tr><th scope=row>{_text(label)}</th>{cells}</tr>")
        note = "Mean ± standard deviation over cases; a case without a value (both masks empty, or one of them for a "
        note += "distance) is left out."
        for kind, settings in self.run.settings.items():
            words = ", ".join(f"{key} {value}" for key, value in sorted(settings.items()))
            note += f" {kind.capitalize()} metrics: {words}." if words else ""
        table = f"<table><tr><th>class</th>{head}</tr>{''.join(rows)}</table>"
        colours = {name: pictures.colour_of(value) for value, name in self._painted().items()}
        plots = _image(pictures.box_plots(finite, colours), "one box per class, one dot per case")
        return _section("Scores", f"<div class=pair>{table}{plots}</div><p class=note>{_text(note)}</p>")

    def _cells_of(self, finite: Mapping[str, Sequence[float]], metric: str, label: str) -> str:
        if label not in finite:
            return "<td></td><td></td>"
        return f"<td>{_spread(finite[label], metric)}</td><td>{len(finite[label])} of {len(self.run.cases)}</td>"

    def _means_of_cases(self) -> dict[str, float]:
        dice = self.run.scores["Dice"]
        values = {case: [dice[label].get(case, nan) for label in self.run.labels] for case in self.run.cases}
        return {case: mean_and_standard_error(row)[0] for case, row in values.items()}

    def _cases(self) -> str:
        means = self._means_of_cases()
        ranked = sorted((case for case in means if isfinite(means[case])), key=lambda case: (means[case], case))
        count = min(self.num_cases, (len(ranked) + 1) // 2)
        worst, best = ranked[:count], ranked[::-1][: min(count, len(ranked) - count)]
        reader = _CaseReader(self.fold, self.plans, self.dataset_json, self.sources)
        parts = [self._legend(), *map(self._note, reader.notes)]
        for title, cases in (("Worst", worst), ("Best", best)):
            for rank, case in enumerate(cases, start=1):
                labels = ", ".join(
                    f"{label} {_number(self.run.scores['Dice'][label].get(case, nan), 'Dice')}"
                    for label in self.run.labels
                )
                caption = f"{title} {rank}: {case}, mean Dice {means[case]:.4f} ({labels})"
                found = reader.read(case)
                if isinstance(found, pictures.Case):
                    shown = _image(pictures.paint(found), caption)
                    if found.image is None and reader.images:
                        shown += self._note(f"No image of {case} was found: name its folder with --images.")
                else:
                    shown = self._note(found)
                parts.append(f"<figure><figcaption>{_text(caption)}</figcaption>{shown}</figure>")
        return _section("Worst and best cases, by Dice", "\n".join(parts))

    def _note(self, sentence: str) -> str:
        self.say(sentence)
        return f"<p class=note>{_text(sentence)}</p>"

    def _legend(self) -> str:
        swatches = [(name, pictures.colour_of(value)) for value, name in self._painted().items()]
        words = [f"<span><i style='background:{colour}'></i>{_text(name)}</span>" for name, colour in swatches]
        words += ["<span class=gap>errors:</span>"]
        words += [f"<span><i style='background:{c}'></i>{_text(name)}</span>" for name, c in pictures.ERRORS.items()]
        return f"<p class=legend>{''.join(words)}</p>"

    def _painted(self) -> dict[int, str]:
        """Name of every value that pictures paint; of regions, what a value is in their words."""
        labels = labels_of(self.dataset_json, "dataset.json")
        values = sorted({value for key in labels.names for value in key} - {0, labels.ignored})
        return {value: _name_of_value(value, labels.names) for value in values}

    def _every_case(self) -> str:
        means = self._means_of_cases()
        metrics = [metric for metric in USUAL_METRICS if metric in self.run.scores]
        head = "".join(
            f"<th>{_text(f'{metric} {label}')}</th>" for metric in metrics for label in self.run.labels_of(metric)
        )
        rows = []
        for case in sorted(means, key=lambda case: (means[case] if isfinite(means[case]) else 2, case)):
            cells = "".join(
                f"<td>{_number(self.run.scores[metric].get(label, {}).get(case, nan), metric)}</td>"
                for metric in metrics
                for label in self.run.labels_of(metric)
            )
            rows.append(f"<tr><th scope=row>{_text(case)}</th><td>{_number(means[case], 'Dice')}</td>{cells}</tr>")
        table = f"<table><tr><th>case</th><th>mean Dice</th>{head}</tr>{''.join(rows)}</table>"
        return _section("Every case", f"<details><summary>{len(rows)} cases, worst first</summary>{table}</details>")

    def _commands(self) -> str:
        trainer, plans, configuration = self.fold.parent.name.split("__")
        if self.record is None:
            number = re.sub(r"^Dataset0*(\d+)_.*", r"\1", str(self.plans.get("dataset_name", "ID")))
            fold = self.fold.name.removeprefix("fold_")
            words = f"nnUNetv2_train {number} {configuration} {fold} -tr {trainer} -p {plans}"
            note = "There is no record (only our trainers write one); this is what the folder's name says."
            return _section("Commands and versions", f"<pre>{_text(words)}</pre><p class=note>{note}</p>")
        sessions = self.record.get("sessions", [])
        lines = [f"# {s.get('started')}, from epoch {s.get('first_epoch')}\n{s.get('command')}" for s in sessions]
        versions = "".join(
            f"<tr><th scope=row>{_text(name)}</th><td>{_text(value)}</td></tr>"
            for name, value in self.record.get("versions", {}).items()
            if value
        )
        return _section("Commands and versions", f"<pre>{_text(chr(10).join(lines))}</pre><table>{versions}</table>")

    def _configuration(self) -> str:
        rows = []
        record = self.record or {}
        recipe = record.get("recipe") or {}
        split, device = record.get("split") or {}, record.get("device") or {}
        facts = {
            "network": record.get("network"),
            "recipe": ", ".join(f"{name} {value}" for name, value in recipe.items()),
            "seed": record.get("seed"),
            "epochs × iterations": f"{record.get('epochs')} × {record.get('iterations_per_epoch')}" if record else None,
            "patch": " × ".join(map(str, record.get("patch_size", []))),
            "batch": record.get("batch_size"),
            "cases": f"{split.get('training_cases')} for training, {split.get('validation_cases')} for validation"
            if split
            else None,
            "device": device.get("name") or device.get("type"),
        }
        for name, value in facts.items():
            if value not in (None, ""):
                rows.append(f"<tr><th scope=row>{_text(name)}</th><td>{_text(value)}</td></tr>")
        name = self.fold.parent.name.split("__")[2]
        try:
            resolved = PlansManager(self.plans).get_configuration(name).configuration
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.fold.parent / 'plans.json'} has no configuration '{name}' ({error})") from error
        whole = json.dumps(_without_folders(resolved), indent=2, default=str)
        body = f"<table>{''.join(rows)}</table>" if rows else ""
        body += f"<details><summary>the whole configuration {_text(name)}</summary><pre>{_text(whole)}</pre></details>"
        return _section("Configuration", body)


def _name_of_value(value: int, names: Mapping[tuple[int, ...], str]) -> str:
    """Its own name, else the smallest region that holds it, without those inside that do not."""
    if (value,) in names:
        return names[value,]
    around = min((key for key in names if value in key), key=len)
    inside = [set(key) for key in names if set(key) < set(around) and value not in key]
    largest = [key for key in inside if not any(key < other for other in inside)]
    rest = " or ".join(name for key, name in names.items() if set(key) in largest)
    words = f"{names[around]} without {rest}" if rest else names[around]
    alike = [other for other in around if other not in set().union(*inside)]
    return words if len(alike) == 1 else f"{words} (label {value})"


def _without_folders(content: object) -> object:
    """The same, with absolute paths reduced to their last names: a page may be mailed."""
    if isinstance(content, Mapping):
        return {key: _without_folders(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_folders(value) for value in content]
    return name_alone(content) if isinstance(content, str) else content


# --- Reading cases ----------------------------------------------------------------------------------------------------


class _CaseReader:
    """Finds and reads what is shown of a case; ``notes`` say what is not there."""

    def __init__(self, fold: Path, plans: dict, dataset_json: dict, sources: Sources):
        self.fold, self.dataset_json, self.sources = fold, dataset_json, sources
        self.ending = dataset_json["file_ending"]
        self.reader = PlansManager(plans).image_reader_writer_class()
        self.dataset = plans.get("dataset_name", fold.parent.parent.name)
        self.notes: list[str] = []
        summary = read_json(fold / "validation" / SUMMARY)
        entries = summary["metric_per_case"]
        self.references = {case_of(e["prediction_file"], self.ending): Path(e["reference_file"]) for e in entries}
        self._refuse_swapped_folders()
        self.images = self._images()
        if not self.images:
            self.notes.append("No images were found: name their folder with --images, or set nnUNet_raw.")

    def _refuse_swapped_folders(self) -> None:
        """Refuse images where references are asked for: by their names, ``<case>_0000``."""
        folder = self.sources.references
        names = [path.name.removesuffix(self.ending) for path in folder.glob(f"*{self.ending}")] if folder else []
        if names and all(re.search(r"_\d{4}$", name) for name in names):
            cases = {re.sub(r"_\d{4}$", "", name) for name in names}
            if not cases.isdisjoint(self.references) and self.references.keys().isdisjoint(names):
                raise UserError(f"{folder} holds images of the cases: name the folder of the references, or --images")

    def _images(self) -> dict[str, list[Path]]:
        if self.sources.images is not None:
            found: dict[str, list[Path]] = {}
            for path in sorted(self.sources.images.glob(f"*{self.ending}")):
                case = re.sub(r"_\d{4}$", "", path.name.removesuffix(self.ending))
                found.setdefault(case, []).append(path)
            if not found:
                raise UserError(f"{self.sources.images} holds no images *{self.ending}: name another with --images")
            return found
        root = nnUNet_raw.get()
        folder = None if root is None else Path(root) / self.dataset
        if folder is None or not folder.is_dir():
            return {}
        listed = get_filenames_of_train_images_and_targets(str(folder), self.dataset_json)
        return {case: [Path(file) for file in files["images"]] for case, files in listed.items()}

    def _reference(self, case: str) -> Path | None:
        name = f"{case}{self.ending}"
        candidates = [self.references[case]]
        if self.sources.references is not None:
            candidates = [self.sources.references / name]
        elif nnUNet_preprocessed.get() is not None:
            candidates.append(Path(nnUNet_preprocessed.get()) / self.dataset / "gt_segmentations" / name)
        return next((path for path in candidates if path.is_file()), None)

    def read(self, case: str) -> pictures.Case | str:
        """Give the case, or a sentence that says why it cannot be shown."""
        prediction_file, reference_file = self.fold / "validation" / f"{case}{self.ending}", self._reference(case)
        if not prediction_file.is_file():
            return f"The prediction of {case} is not in the folder validation."
        if reference_file is None:
            return f"The reference of {case} was not found: name its folder with --references."
        prediction, spacing = self._mask(prediction_file)
        truth, _ = self._mask(reference_file)
        if truth.shape != prediction.shape:
            raise UserError(f"{reference_file} has shape {truth.shape} and the prediction {prediction.shape}")
        files = [path for path in self.images.get(case, []) if path.is_file()]
        image = None
        if files:
            image = self._image(files)
            if image.shape[1:] != truth.shape:
                raise UserError(f"{files[0]} has shape {image.shape[1:]} and the prediction {prediction.shape}")
            image = self._channel(image)
        ignored = labels_of(self.dataset_json, "dataset.json").ignored
        if ignored is not None:
            prediction = np.where(truth == ignored, 0, prediction)
            truth = np.where(truth == ignored, 0, truth)
        return pictures.Case(case, image, np.rint(truth).astype(int), np.rint(prediction).astype(int), spacing)

    def _mask(self, path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
        """Labels and spacing as nnU-Net reads them; what its reader does not take, as our scores read it."""
        try:
            values, properties = self.reader.read_seg(str(path))
        except Exception as error:  # every reader has exceptions of its own
            read = _or_refuse(read_labels, path, error)
            return read.values, read.spacing
        return _as_plane(values[0], tuple(map(float, properties["spacing"])))

    def _image(self, files: Sequence[Path]) -> np.ndarray:
        """Channels first; as nnU-Net reads it, but turned round where 0 is white, so that it looks as in a viewer."""
        try:
            image, _ = self.reader.read_images([str(path) for path in files])
        except Exception as error:  # every reader has exceptions of its own
            images = [_or_refuse(read_image, path, error) for path in files]
            if images[0].ndim == 3 and ending_of(files[0]) in PICTURE_ENDINGS:
                images = [np.moveaxis(one, -1, 0) for one in images]
            else:
                images = [_as_plane(one)[0][None] for one in images]
            if len({one.shape[1:] for one in images}) > 1:
                raise _cannot_be_read(files[0], error) from error
            return np.concatenate(images)
        image = np.stack([_as_plane(channel)[0] for channel in image])
        for part, path in zip(np.array_split(image, len(files)), files):  # all files have as many channels
            if is_white_at_zero(path):
                np.negative(part, out=part)
        return image

    def _channel(self, image: np.ndarray) -> np.ndarray:
        names = [name.lower() for name in channels_of(self.dataset_json, "dataset.json")]
        if names in (["r", "g", "b"], ["red", "green", "blue"]) and len(image) == 3:
            return np.moveaxis(image, 0, -1)
        if self.sources.channel >= len(image):
            raise UserError(f"there is no channel {self.sources.channel}: the images have {len(image)}, from 0")
        return image[self.sources.channel]


def _as_plane(values: np.ndarray, spacing: tuple[float, ...] = ()) -> tuple[np.ndarray, tuple[float, ...]]:
    """Leave out the axis of a single slice, as nnU-Net's form of a 2D image has it."""
    if values.ndim == 2 or 1 not in values.shape:
        return values, spacing
    axis = values.shape.index(1)
    return values.squeeze(axis), spacing[:axis] + spacing[axis + 1 :]


def _or_refuse(read: Callable[[Path], Read], path: Path, error: Exception) -> Read:
    """Read a file that nnU-Net's reader has refused with an error, or say what that was."""
    try:
        return read(path)
    except CaseError:
        raise _cannot_be_read(path, error) from error


def _cannot_be_read(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()
    return UserError(f"{path} cannot be read ({reason[-1] if reason else type(error).__name__})")


# --- HTML -------------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return html.escape(str(value))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>\n{body}\n</section>"


def _image(png: bytes, words: str) -> str:
    return f'<img alt="{_text(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _number(value: float, metric: str) -> str:
    if not isfinite(value):
        return "-"
    return f"{value:.2f}" if metric.startswith("HD") else f"{value:.4f}"


def _spread(values: Sequence[float], metric: str) -> str:
    if not values:
        return "-"
    deviation = f" ± {_number(float(np.std(values, ddof=1)), metric)}" if len(values) > 1 else ""
    return _number(float(np.mean(values)), metric) + deviation


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2024;background:#f6f7f9;margin:0 auto;max-width:1100px;padding:24px}
h1{font-size:26px;margin:0}h2{font-size:18px;margin:0 0 12px}header p{color:#5b6670;margin:4px 0 16px}
section{background:#fff;border:1px solid #e2e6ea;border-radius:8px;padding:16px 20px;margin:16px 0;overflow-x:auto}
.cards{display:flex;flex-wrap:wrap;gap:10px}.cards div{background:#fff;border:1px solid #e2e6ea;border-radius:8px;
padding:10px 16px;min-width:84px}.cards b{display:block;font-size:19px}.cards span{color:#5b6670;font-size:12px}
table{border-collapse:collapse;margin:0 0 12px}th,td{padding:4px 14px 4px 0;border-bottom:1px solid #e8ebee;
text-align:right;font-variant-numeric:tabular-nums}th{font-weight:600}th:first-child{text-align:left}
.pair{display:flex;flex-wrap:wrap;gap:12px 40px;align-items:flex-start}
img{max-width:100%;height:auto;display:block}figure{margin:0 0 22px}
figcaption{font-weight:600;font-size:14px;margin-bottom:4px}
pre{background:#f1f3f5;padding:12px;border-radius:6px;overflow-x:auto;font-size:13px;white-space:pre-wrap;
overflow-wrap:anywhere}.note{color:#5b6670;font-size:13px}.legend span{margin-right:16px;white-space:nowrap}
.legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:5px;vertical-align:-1px;
border:1px solid #0003}.legend .gap{color:#5b6670;margin-left:16px}summary{cursor:pointer}
"""

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
