"""Studies: every trainer and seed on every configuration in all folds, and what is due of that.

Everything is done by nnU-Net's commands and ours, so what they leave on the disk says what is done, whoever ran them,
and nothing has to watch over a study that runs on a cluster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from nnunet_logvmamba.claims import HeldError, Holder, claimed, holder_of
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.scoring import DEFAULT_METRICS
from nnunet_logvmamba.files import read_json, replace_text
from nnunet_logvmamba.plugin import first_run
from nnunet_logvmamba.plugin.checkpoints import CHECKPOINTS
from nnunet_logvmamba.plugin.first_run import Derived, FirstRun, NewScans, Request, Step
from nnunet_logvmamba.plugin.study_file import Study
from nnunet_logvmamba.plugin.trainer_families import FAMILIES
from nnunet_logvmamba.plugin.trainer_names import parts_of
from nnunet_logvmamba.results import runs
from nnunet_logvmamba.results.comparison import names_of, rename
from nnunet_logvmamba.results.logs import read_text_logs
from nnunet_logvmamba.results.predicted import SCORED_AGAINST, SCORES
from nnunet_logvmamba.results.record import read_record
from nnunet_logvmamba.results.runs import method_of

STAGES = ("prepare", "train", "predict", "compare")
"""What waits for what: each stage for the one before it."""

RECORD = "study.json"
COMPARED = "compared.json"
LOCK = "local.lock"
FRESH_S = 300
"""A training that was begun by hand counts as running while its log is younger than this, or than three epochs."""
FRESH_BEFORE_FIRST_S = 3600
"""The same for one that has no epoch yet, of whose length nothing is known."""


@dataclass(frozen=True)
class Job:
    """What runs as one job.

    Attributes:
        stage: One of ``STAGES``.
        number: Which of the pairs of plans and configuration, counted configuration by configuration.
    """

    stage: str
    number: int = 0
    trainer: str = ""
    fold: str = ""


@dataclass(frozen=True)
class State:
    """How far a job is: ``done``, ``running``, ``waiting``, ``failed`` or ``missing``, and more about that."""

    word: str
    detail: str = ""


class Trainings(FirstRun):
    """The part of a study that has one configuration of one plans file."""

    def check_results(self) -> None:
        """Refuse results that are called like those of the study and are of another one.

        Raises:
            UserError: Naming the folder, and in what it differs.
        """
        plans = self._plans()
        self._check_networks(plans)
        if plans is None:
            return
        self._check_derived(plans)
        if self.configuration not in plans["configurations"]:
            return
        for trainer in self.request.trainers:
            other = self.trained_otherwise(trainer, plans)
            if other is not None:
                raise UserError(f"{other}: move it away, or give the configuration another name")

    def _check_networks(self, plans: dict | None) -> None:
        """Refuse a configuration that names another network than one of the trainers can train."""
        ours = self.request.derived is not None and not self.request.derived.content.get("keep_network", False)
        if not ours and plans is not None and self.configuration in plans["configurations"]:
            from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

            from nnunet_logvmamba.plugin.plans import is_ours

            ours = is_ours(PlansManager(plans).get_configuration(self.configuration).configuration["architecture"])
        for trainer in self.request.trainers:
            family, _ = parts_of(trainer) or ("", {})
            if ours and FAMILIES.get(family, {}).get("stock", False):
                raise UserError(
                    f"{trainer} trains the network that nnU-Net planned, but {self.configuration} names another: "
                    "derive it with keep_network = true, or make two studies and compare their results"
                )

    def _check_derived(self, plans: dict) -> None:
        """Refuse a derived configuration that is there and is another one, or that cannot be."""
        derived = self.request.derived
        if derived is None:
            return
        from nnunet_logvmamba.networks import catalogue
        from nnunet_logvmamba.plugin.plans import add_configuration

        options = derived.content
        written, _ = add_configuration(
            plans,
            self.dataset_json,
            self.request.configuration,
            derived.name,
            arguments=options.get("set"),
            training=options.get("train"),
            batch_size=options.get("batch_size"),
            patch_size=options.get("patch_size"),
            network=catalogue.row(options["network"]).path if "network" in options else None,
            keep_network=options.get("keep_network", False),
            overwrite=True,
        )
        there = plans["configurations"].get(derived.name)
        if there is not None and there != json.loads(json.dumps(written["configurations"][derived.name])):
            raise UserError(
                f"the plans have a configuration {derived.name} that differs from what the study derives: give the "
                "study's another name, or write it with logvmamba plans --overwrite"
            )

    def with_scans(self, new: NewScans, like: Trainings | None) -> Trainings:
        """Give the same part, which also predicts; what is known of the scans from another part is not read again."""
        part = copy(self)
        part.request = replace(self.request, new=new)
        if like is None:
            part.new_cases = part._check_new_images()
        else:
            part.new_cases, part._scans = like.new_cases, like._scans
        part._check_targets()
        return part

    def _target(self, trainer: str) -> Path:
        return self._new.predictions / trainer  # also of a single one, since others may be added later

    # The steps of a study's jobs

    def configure(self) -> Iterator[Step]:
        """Give the step that writes the configuration, if it is derived from another."""
        self._check_planned(self._plans())
        if self.request.derived is not None:
            yield self._configuration()

    def train(self, trainer: str, fold: str, *, dry_run: bool) -> Iterator[Step]:
        """Give the steps that train and validate a fold, score its held-out cases, and write the page about it.

        A result stands without its weights, too.
        """
        folder = self.model(trainer) / f"fold_{fold}"
        if runs.is_finished(folder) and not any((folder / name).exists() for name in CHECKPOINTS):
            yield Step(f"train {trainer} fold {fold}", finished=f"its weights are gone, its scores are there: {folder}")
            return
        yield self._training(trainer, fold, dry_run=dry_run)
        yield from self._scores_and_page(trainer, fold)

    def _is_trained(self, trainer: str, fold: str) -> bool:
        return runs.is_finished(self.model(trainer) / f"fold_{fold}")  # also where its weights are gone

    def predict(self, trainer: str, *, dry_run: bool) -> Iterator[Step]:
        """Give the steps that predict scans with all folds, and score that if references are there.

        Predictions stand without the weights that made them, too.
        """
        yield from self._prediction(trainer, dry_run=dry_run)


class Planned:
    """A study on a data set that is there.

    Args:
        study: What is asked for.
        on: ``local`` or ``slurm``.
        elsewhere: It runs on another machine, so its device is not looked for here.
    """

    def __init__(self, study: Study, *, on: str = "local", elsewhere: bool = False):
        if on == "slurm" and study.device == "auto":
            study = replace(study, device="cuda" if study.cluster.gpus else "cpu")
        self.study, self.on, self.elsewhere = study, on, elsewhere
        self._parts: dict[int, Trainings] = {}
        self._with_scans: dict[int, Trainings] = {}
        raw, _, results = first_run.nnunet_folders()
        self.dataset = first_run.find_dataset(study.dataset, raw)
        self.results = results / self.dataset
        self.folder = self.results / "studies" / study.name

    def part(self, number: int) -> Trainings:
        """Give the part with one plans file and configuration, all that can be checked about it having been checked."""
        if number not in self._parts:
            self._parts[number] = Trainings(self._requests[number])
        return self._parts[number]

    @cached_property
    def _requests(self) -> list[Request]:
        study = self.study
        strangers = [name for name in study.derive if name not in study.configurations]
        if strangers:
            raise UserError(f"[derive.{strangers[0]}] is of no use: add '{strangers[0]}' to the configurations")
        found = []
        for plans in study.plans:
            for name in study.configurations:
                base, content = name, study.derive.get(name)
                if content is not None:
                    base, content = content["from"], {key: value for key, value in content.items() if key != "from"}
                found.append(
                    Request(
                        study.dataset,
                        base,
                        study.trainers,
                        study.folds,
                        study.device,
                        plans=plans,
                        derived=None if content is None else Derived(name, content),
                        num_gpus=max(1, study.cluster.gpus) if self.on == "slurm" else 1,
                        elsewhere=self.elsewhere,
                    )
                )
        return found

    def check(self) -> None:
        """Refuse what cannot be carried out, before anything is.

        Raises:
            UserError: In one sentence.
        """
        for number in range(len(self._requests)):
            self.part(number).check_results()
        self._check_compared()
        if self.study.predict:
            self._predicting(0)  # reads all scans
        self._read_record()

    def attentions(self) -> list[str]:
        """Give what is to be known before, see :meth:`FirstRun.check_unchanged` and :meth:`FirstRun.unlisted`."""
        parts = [self.part(number) for number in range(len(self._requests))]
        for part in parts:
            part.changed = parts[0].changed  # they are of one data set
        said = [*(part.check_unchanged() for part in parts), parts[0].unlisted()]
        return [each for each in dict.fromkeys(said) if each is not None]

    def _check_compared(self) -> None:
        """Refuse names that the comparison, which comes last, would not know."""
        models = [self.model(job) for job in self.jobs if job.stage == "train"]
        names = names_of(method_of(*model.name.split("__")) for model in models)
        rename(names, self.study.compare.get("names", {}), self.study.compare.get("against"))

    def _predicting(self, number: int) -> Trainings:
        """One of the parts, which also predicts."""
        if number not in self._with_scans:
            predict = self.study.predict
            references = Path(predict["references"]) if "references" in predict else None
            new = NewScans(Path(predict["images"]), self._predictions(number), references)
            like = next(iter(self._with_scans.values()), None)
            self._with_scans[number] = self.part(number).with_scans(new, like)
        return self._with_scans[number]

    def _predictions(self, number: int) -> Path:
        plans, configuration = divmod(number, len(self.study.configurations))
        folds = "_".join(("folds", *self.study.folds))  # with more of them it is another prediction
        names = self.study.plans[plans], self.study.configurations[configuration], folds
        return self.folder / "predictions" / "__".join(names)

    def _predicted(self, job: Job) -> Path:
        """Folder that a job predicts into."""
        return self._predictions(job.number) / job.trainer

    # What there is to do

    @cached_property
    def jobs(self) -> list[Job]:
        """All that the study consists of, in an order in which it can be done."""
        parts = range(len(self.study.plans) * len(self.study.configurations))
        models = [(number, trainer) for trainer in self.study.trainers for number in parts]
        found = [Job("prepare"), *(Job("train", *model, fold) for model in models for fold in self.study.folds)]
        found += [Job("predict", *model) for model in models if self.study.predict]
        methods = {(number, method_of(trainer, "", "")) for number, trainer in models}
        return found + [Job("compare")] * (len(methods) > 1)

    def key(self, job: Job) -> str:
        """Name of a job in tables and files."""
        words = [job.stage]
        if job.trainer:
            words.append(self.model(job).name)
        return " ".join([*words, f"fold_{job.fold}"] if job.fold else words)

    def model(self, job: Job) -> Path:
        """Folder of the model that a job is about."""
        plans, configuration = divmod(job.number, len(self.study.configurations))
        names = (job.trainer, self.study.plans[plans], self.study.configurations[configuration])
        return self.results / "__".join(names)

    def steps(self, job: Job, *, dry_run: bool = False) -> Iterator[Step]:
        """Give the steps of a job, as :meth:`FirstRun.steps` does.

        Raises:
            UserError: If it is no dry run and what they need is not done.
        """
        if job.stage in ("predict", "compare") and not dry_run:
            self._check_trained(job)
        if job.stage == "prepare":
            yield from self._preparation(dry_run=dry_run)
        elif job.stage == "train":
            yield from self.part(job.number).train(job.trainer, job.fold, dry_run=dry_run)
        elif job.stage == "predict":
            yield from self._predicting(job.number).predict(job.trainer, dry_run=dry_run)
        else:
            yield from self._comparisons(dry_run=dry_run)

    def _check_trained(self, job: Job) -> None:
        needed = [each for each in self._compared_jobs if not job.trainer]
        needed = needed or [each for each in self.jobs if each.stage == "train" and self._same(job, each)]
        open_ = [each for each in needed if not self.is_trained(each)]
        if open_:
            raise UserError(
                f"{len(open_)} of {len(needed)} training(s) are not finished, the first is {self.key(open_[0])}: there "
                f"is nothing to {job.stage} yet"
            )

    @staticmethod
    def _same(one: Job, other: Job) -> bool:
        return (one.number, one.trainer) == (other.number, other.trainer)

    def _preparation(self, *, dry_run: bool) -> Iterator[Step]:
        for plans in self.study.plans:
            numbers = [number for number, request in enumerate(self._requests) if request.plans == plans]
            parts = [self.part(number) for number in numbers]
            bases = list(dict.fromkeys(part.request.configuration for part in parts))
            yield from parts[0].preprocess(bases, dry_run=dry_run)
            for part in parts:
                yield from part.configure()

    @property
    def _compared_jobs(self) -> list[Job]:
        folds = first_run.compared_folds(self.study.folds)
        return [job for job in self.jobs if job.stage == "train" and job.fold in folds]

    def _comparisons(self, *, dry_run: bool) -> Iterator[Step]:
        """Compare the validations and, where they are scored, predictions of held-out cases."""
        trained = self._compared_jobs
        models = list(dict.fromkeys(str(self.model(job)) for job in trained))
        summaries = [self._fold(job) / "validation" / runs.SUMMARY for job in trained]
        words = [*models, "--folds", *first_run.compared_folds(self.study.folds)]
        yield self._comparison("compare", words, summaries, self.table, self.study.compare.get("metrics", []))
        if "references" not in self.study.predict:
            return
        folders = [self._predicted(job) for job in self.jobs if job.stage == "predict"]
        open_ = [folder for folder in folders if not (folder / SCORED_AGAINST).is_file()]
        if open_ and not dry_run:
            raise UserError(
                f"{len(open_)} of {len(folders)} model(s) have no scored predictions, the first is {open_[0]}: there "
                "is no comparison of held-out cases yet"
            )
        metrics = [name for name in self.study.compare.get("metrics", []) if name.lower() in DEFAULT_METRICS]
        scores = [folder / SCORES / "scores.json" for folder in folders]
        words = list(map(str, folders))
        yield self._comparison("compare held-out cases", words, scores, self.held_out_table, metrics)

    def _comparison(
        self, title: str, words: Sequence[str], sources: Sequence[Path], table: Path, metrics: Sequence[str]
    ) -> Step:
        options = self.study.compare
        words = ["logvmamba", "compare", *words, *(["--metrics", *metrics] if metrics else [])]
        words += ["--against", options["against"]] if "against" in options else []
        words += ["--names", *(f"{old}={new}" for old, new in options["names"].items())] if "names" in options else []
        if first_run.is_newer(table, sources) and self._compared() in (None, self._to_compare()):
            return Step(title, finished=f"it is written: {table}")
        return Step(title, (*words, "--output", str(table.parent)))

    def _compared(self) -> dict[str, Any] | None:
        """Of what and with which options the table was made, if it was written down."""
        file = self.folder / COMPARED
        return read_json(file, "remove it, and the table is made anew") if file.is_file() else None

    def remember_compared(self) -> None:
        """Write down of what and with which options the table was made."""
        replace_text(self.folder / COMPARED, json.dumps(self._to_compare()) + "\n")

    def _to_compare(self) -> dict[str, Any]:
        trained = [self._fold(job).relative_to(self.results).as_posix() for job in self._compared_jobs]
        return json.loads(json.dumps({"trainings": trained, "options": self.study.compare}))

    @property
    def table(self) -> Path:
        """What the study is made for."""
        return self.folder / "tables" / "comparison.md"

    @property
    def held_out_table(self) -> Path:
        """The same of predictions of cases that were in no fold."""
        return self.folder / "tables_held_out" / "comparison.md"

    @property
    def tables(self) -> list[Path]:
        """Those of the two that are there."""
        return [table for table in (self.table, self.held_out_table) if table.is_file()]

    def due(self) -> list[Job]:
        """All jobs of which a step is due, whoever may be at them."""
        return [job for job in self.jobs if any(step.finished is None for step in self.steps(job, dry_run=True))]

    def split(self, due: Sequence[Job], queued: Container[str] = ()) -> tuple[list[Job], list[Job]]:
        """Give the jobs that may begin, and trainings that somebody else is at; what needs these is in neither.

        Args:
            queued: Numbers of jobs that are in the queue.
        """
        begun = self.jobs_begun
        theirs = [
            job
            for job in due
            if job.stage == "train"
            and not self.is_trained(job)
            and begun.get(self.key(job)) not in queued
            and self._is_at_work(job, begun)
        ]
        return [job for job in due if not self.needs(job, theirs)], theirs

    def needs(self, job: Job, trainings: Sequence[Job]) -> bool:
        """Whether a job is among these trainings, or wants what they leave."""
        if job.stage == "train":
            return job in trainings
        if job.stage == "compare":
            return any(training in self._compared_jobs for training in trainings)
        return any(self._same(job, training) for training in trainings)

    @property
    def prepares_more(self) -> bool:
        """Whether more is to be preprocessed or derived than when jobs were begun the last time."""
        there = self._read_record().get("study", {})
        return any(there.get(key) != self.study.definition[key] for key in ("plans", "configurations", "derive"))

    # What was done

    @property
    def record(self) -> Path:
        """File that says what the study is, and which jobs were begun."""
        return self.folder / RECORD

    def _read_record(self) -> dict[str, Any]:
        """Where jobs were begun, and their numbers in the queue by their keys.

        Raises:
            UserError: If the folder is that of another study.
        """
        file, mine = self.record, self.study.definition
        if not file.is_file():
            return {"on": None, "jobs": {}}
        record = read_json(file, "remove it, if no job of the study is in the queue")
        there = record.get("study", {}) if isinstance(record, dict) else {}
        for key, value in mine.items():
            was, grows = there.get(key), key in ("trainers", "configurations", "plans", "folds")
            if key == "derive":
                differs = {name: value.get(name) for name in was or {}} != (was or {})
            else:
                differs = bool(set(was or ()) - set(value)) if grows else was != value
            if differs:
                raise UserError(
                    f"{self.folder} is of another study (its {key}: {_in_words(was)}, not "
                    f"{_in_words(value)}): give this one another name, or remove the folder"
                )
        return record

    @property
    def jobs_begun(self) -> dict[str, str]:
        """Numbers in the queue of SLURM, by the keys of the jobs; "" for those that began here."""
        return self._read_record()["jobs"]

    @property
    def ran_on(self) -> str | None:
        """``local`` or ``slurm``; None if nothing was begun."""
        return self._read_record()["on"]

    def remember(self, begun: Mapping[str, str]) -> None:
        """Write down which jobs begin."""
        jobs = {**self._read_record()["jobs"], **begun}
        content = {"study": self.study.definition, "on": self.on, "jobs": jobs}
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.record, json.dumps(content, indent=1) + "\n")

    def _fold(self, job: Job) -> Path:
        return self.model(job) / f"fold_{job.fold}"

    def is_trained(self, job: Job) -> bool:
        """Whether a training is finished and validated, by nnU-Net's files."""
        return runs.is_finished(self._fold(job))

    def reached(self, job: Job) -> str:
        """Describe what a training would go on from: the text differs once that is more."""
        fold = self._fold(job)
        checkpoints = [path for name in CHECKPOINTS if (path := fold / name).is_file()]
        validated = len(list((fold / "validation").glob("*")))
        return f"{[(path.name, path.stat().st_mtime_ns) for path in checkpoints]}, {validated} validated"

    def failure(self, job: Job) -> Path:
        """File with the last words of a job that failed; a job that begins removes it."""
        return self.folder / "failed" / f"{self.key(job).replace(' ', '_')}.txt"

    def logs(self, job: Job) -> Path:
        """Folder of what the commands of a job print."""
        return self.folder / "logs" / self.key(job).replace(" ", "_")

    def state(self, job: Job, queue: Mapping[str, str], here: str | None) -> State:
        """Give the state of a job.

        Args:
            queue: What SLURM says about the jobs that it has, by their numbers.
            here: Key of the job that runs on this machine.
        """
        key, failure = self.key(job), self.failure(job)
        begun = self.jobs_begun
        in_queue = queue.get(begun.get(key, ""))
        trains = job.stage == "train"
        if in_queue == "RUNNING" or here == key:
            return State("running", self._progress(job) if trains else "")
        if self._is_done(job):
            return State("done")
        if in_queue is not None:
            return State("waiting", "" if in_queue == "PENDING" else in_queue.lower())
        if failure.is_file():
            return State("failed", failure.read_text(encoding="utf-8").strip())
        if trains and runs.is_begun(self._fold(job)):
            if self._is_at_work(job, begun):
                return State("running", self._progress(job))
            return State("failed", f"it ended without a word, {self._progress(job, eta=False)}")
        return State("missing")

    def _is_done(self, job: Job) -> bool:
        if job.stage == "train":
            return self.is_trained(job)
        if job.stage == "compare":
            return all(step.finished is not None for step in self._comparisons(dry_run=True))
        return job.stage == "predict" and FirstRun._record(self._predicted(job))[1]

    def _is_at_work(self, job: Job, begun: Container[str]) -> bool:
        """Whether a process is at a training: that of one of ours holds its fold, any other writes to its log."""
        lock = self._fold(job) / runs.IN_USE
        if lock.is_file():
            return holder_of(lock) is not None
        if self.key(job) in begun or not runs.is_begun(self._fold(job)):
            return False
        logs = [path.stat().st_mtime for path in self._fold(job).glob("training_log_*.txt")]
        seconds = _seconds(read_text_logs(self._fold(job)))
        fresh = max(FRESH_S, 3 * max(seconds)) if seconds else FRESH_BEFORE_FIRST_S
        return bool(logs) and time.time() - max(logs) < fresh

    def _progress(self, job: Job, *, eta: bool = True) -> str:
        """Epoch and time to go, by nnU-Net's log."""
        fold = self._fold(job)
        log, total = read_text_logs(fold), _num_epochs(fold)
        if not log:
            return "before its first epoch"
        epoch, seconds = len(next(iter(log.values()))), _seconds(log)
        text = f"epoch {epoch} of {total}" if total else f"epoch {epoch}"
        if not (eta and total and seconds):
            return text
        return f"{text}, {_duration(median(seconds[-20:]) * (total - len(seconds)))} to go"


def _seconds(log: Mapping[str, list[float]]) -> list[float]:
    return [value for value in log.get("seconds", []) if isfinite(value)]


def _num_epochs(fold: Path) -> int | None:
    """How many epochs a training will have, by nnU-Net's file or, until that is there, by our record."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((fold / "debug.json").read_text(encoding="utf-8"))["num_epochs"])
    with suppress(ValueError):
        return (read_record(fold) or {}).get("epochs")
    return None


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _in_words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# --- Running ----------------------------------------------------------------------------------------------------------


def carry_out(planned: Planned, job: Job, **shown: Any) -> None:
    """Do a job, as :func:`first_run.run_steps`, and leave its last words if it fails.

    Raises:
        UserError: As that does.
    """
    failure = planned.failure(job)
    failure.unlink(missing_ok=True)
    try:
        first_run.run_steps(planned.steps(job), planned.logs(job), **shown)
    except Exception as error:
        words = error.last_words if isinstance(error, first_run.StepFailed) else f"{error}" or repr(error)
        failure.parent.mkdir(parents=True, exist_ok=True)
        replace_text(failure, f"{words}\n")
        raise
    if job.stage == "compare":
        planned.remember_compared()


def run_here(planned: Planned, due: Sequence[Job], **shown: Any) -> None:
    """Do one job after the other on this machine; one that fails does not keep the others from being done.

    Raises:
        UserError: If one failed, or the study runs here already.
    """
    failed: list[Job] = []
    with alone(planned.folder) as doing:
        planned.remember({})
        theirs: list[Job] = []
        for job in due:
            theirs += planned.split([job])[1]  # some may have been begun meanwhile
            if planned.needs(job, theirs):
                shown.get("show", print)(f"\n# {planned.key(job)}: left to whoever is at it, or at what it needs")
                continue
            planned.remember({planned.key(job): ""})
            doing(planned.key(job))
            try:
                carry_out(planned, job, **shown)
            except (UserError, OSError) as error:
                failed.append(job)
                shown.get("show", print)(f"\n# {planned.key(job)} failed: {error}")
                if job.stage == "prepare":
                    break
    if failed:
        raise UserError(
            f"{len(failed)} of {len(due)} job(s) failed, the first is {planned.key(failed[0])} "
            f"({planned.failure(failed[0])} has its last words); once that is put right, logvmamba study resume does "
            "what is missing"
        )


@contextmanager
def alone(folder: Path) -> Iterator[Callable[[str], None]]:
    """Hold the study while its jobs run here or are handed over; what is given writes down what is being done.

    Raises:
        UserError: If another process does either.
    """
    try:
        with claimed(folder / LOCK) as doing:
            yield doing
    except HeldError as error:
        raise UserError(
            f"the study runs already, as {error.holder}, which is at: {error.holder.doing}; logvmamba study cancel "
            "ends that"
        ) from None


def running_here(folder: Path) -> Holder | None:
    """Give the process that runs the study without a cluster, None if none does."""
    return holder_of(folder / LOCK)
