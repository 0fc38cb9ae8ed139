"""``logvmamba study``: many trainings and what is made of them, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_logvmamba.claims import HeldError, claimed
from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import at_least, examples
from nnunet_logvmamba.errors import UserError

if TYPE_CHECKING:
    from nnunet_logvmamba.plugin.shards import Shards
    from nnunet_logvmamba.plugin.study import Job, Planned
    from nnunet_logvmamba.plugin.study_file import Cluster, Study

PAGE = "how-to/study.md"
ACTIONS = ("run", "status", "resume", "cancel", "predict")
_OPTIONS = {
    "name": "name of the study, which is also that of its folder (default: that of the file)",
    "dataset": "number or name of a data set in nnUNet_raw",
    "configurations": "such as 3d_fullres (the default)",
    "plans": "names of plans (default: nnUNetPlans)",
    "trainers": "as for nnUNetv2_train -tr",
    "folds": "numbers, or all (default: 0 1 2 3 4)",
    "seeds": "each trainer NAME is trained as NAME_seedK",
    "device": "auto, cpu, cuda or mps (default: auto)",
}
_SHORT = {"dataset": "-d", "configurations": "-c", "plans": "-p"}
_ONE = ("name", "dataset", "device")


def with_action(words: Sequence[str]) -> list[str]:
    """Give the words of a command line with the action that is meant where a file or an option comes first."""
    first, following, *_ = [*words, "", ""]
    meant = following.endswith(".toml") or following.startswith("-") and following not in ("-h", "--help")
    return [first, "run", *words[1:]] if first == "study" and meant else [*words]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``study`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "study",
        help="trainers, seeds and folds to compare, on this machine or on a SLURM cluster",
        description="Run every trainer with every seed in all folds, predict, score, report and compare, by nnU-Net's "
        "own commands and ours. What is done is never done again.",
        **examples(
            PAGE,
            "logvmamba study run study.toml --dry-run",
            "logvmamba study run study.toml --on slurm",
            "logvmamba study status study.toml",
        ),
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    help_ = {
        "run": "do all that is due, or hand it over to the cluster",
        "status": "show what is done, running, failed and missing",
        "resume": "do or hand over what is missing; trainings go on where they were",
        "cancel": "take the study's jobs out of the queue, or end the run on this machine",
    }
    for action, text in help_.items():
        own = actions.add_parser(
            action, help=text, description=f"{text[0].upper()}{text[1:]}.", **examples(PAGE, _example(action))
        )
        own.add_argument("file", nargs="?", type=Path, metavar="FILE.toml", help="what the study is")
        _add_description(own)
        if action in ("run", "resume"):
            _add_where(own, resumes=action == "resume")
    predict = actions.add_parser(
        "predict",
        help="predict a folder of scans with a trained model, in shards",
        description="Predict with nnUNetv2_predict, each of N shards in a job of its own. OUT is written when all "
        "cases are there; the same command does what is missing.",
        **examples(
            PAGE,
            "logvmamba study predict nnUNetTrainerLoGVMamba__nnUNetPlans__3d_fullres SCANS PREDICTIONS --shards 8",
        ),
    )
    predict.add_argument("model", type=Path, metavar="MODEL", help="results folder TRAINER__PLANS__CONFIGURATION")
    predict.add_argument("images", type=Path, metavar="IMAGES", help="folder of the scans")
    predict.add_argument("out", type=Path, metavar="OUT", help="new folder to write to")
    predict.add_argument("--shards", type=at_least(1, int), default=1, metavar="N", help="default: %(default)s")
    predict.add_argument("--folds", nargs="+", metavar="K", help="default: all that the model has")
    predict.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: auto")
    predict.add_argument("--cluster", type=Path, metavar="FILE.toml", help="file whose table [cluster] is to be used")
    _add_where(predict, resumes=False)


def _example(action: str) -> str:
    return f"logvmamba study {action} study.toml"


def _add_description(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("in place of FILE.toml, or of what it says")
    for name, text in _OPTIONS.items():
        words = [*([_SHORT[name]] if name in _SHORT else []), f"--{name}"]
        group.add_argument(*words, nargs=None if name in _ONE else "+", metavar=name.upper(), help=text)


def _add_where(parser: argparse.ArgumentParser, *, resumes: bool) -> None:
    default = "where it was run last" if resumes else "local"
    parser.add_argument(
        "--on",
        choices=("local", "slurm"),
        default=None if resumes else "local",
        help=f"one job after the other on this machine, or all as jobs of SLURM (default: {default})",
    )
    parser.add_argument("--dry-run", action="store_true", help="check, and print the commands that are due")


def run(args: argparse.Namespace) -> int:
    """Do what the action says.

    Raises:
        UserError: If something does not fit, and nothing was begun or submitted then; or if a job fails.
    """
    if args.action == "predict":
        return _predict(args)
    study = _study(args)
    if getattr(args, "on", None) == "slurm":
        _check_cluster(dry_run=args.dry_run)
    from nnunet_logvmamba.plugin import study as library  # late, because it imports torch

    if args.action == "status":
        return _status(library.Planned(study))
    if args.action == "cancel":
        return _cancel(library.Planned(study))
    on = args.on or library.Planned(study).ran_on or "local"
    if on == "slurm" and args.on is None:
        _check_cluster(dry_run=args.dry_run)
    planned = library.Planned(study, on=on, elsewhere=on == "slurm")
    planned.check()
    for attention in planned.attentions():
        _say(attention)
    try:
        queue = _queue(planned)
    except UserError:
        if not args.dry_run:
            raise
        queue = {}
    due, theirs = planned.split(planned.due(), queue)
    for job in theirs:
        _say(f"left out, since somebody is at it: {planned.key(job)}")
    if args.dry_run:
        _show_steps(planned, due)
        return 0
    return _hand_over(planned, due) if on == "slurm" else _run_here(planned, due, queue)


def _study(args: argparse.Namespace) -> Study:
    from nnunet_logvmamba.plugin import study_file

    content = {} if args.file is None else study_file.read_toml(args.file)
    for name in _OPTIONS:
        value: Any = getattr(args, name)
        if value is not None:
            numbers = name in ("folds", "seeds")
            content[name] = [int(word) if word.isdecimal() else word for word in value] if numbers else value
    where = "the study" if args.file is None else str(args.file)
    return study_file.make_study(content, where=where, name="study" if args.file is None else args.file.stem)


def _say(text: str) -> None:
    terminal.show(text)
    sys.stdout.flush()  # before the commands write to the same terminal


def _check_cluster(*, dry_run: bool) -> None:
    """Refuse where no job can be handed over; a dry run may plan for another machine, and says what this one lacks."""
    from nnunet_logvmamba.plugin import cluster

    try:
        cluster.check()
    except UserError as error:
        if not dry_run:
            raise
        _say(f"note: nothing could be submitted from here: {error}")


def _how() -> dict[str, Any]:
    return {"show": _say, "show_command": terminal.show_command, "shown": terminal.relayed()}


def _show_steps(planned: Planned, due: Sequence[Job]) -> None:
    from nnunet_logvmamba.plugin.first_run import run_steps

    for job in due:
        steps = [step for step in planned.steps(job, dry_run=True) if step.finished is None]
        run_steps(steps, planned.folder, dry_run=True, **_how())
    _say(f"\n{_counted(planned, due)}")


def _counted(planned: Planned, due: Sequence[Job]) -> str:
    trainings = [job for job in planned.jobs if job.stage == "train"]
    to_do = sum(not planned.is_trained(job) for job in trainings)
    return f"{to_do} of {len(trainings)} training(s) to do, {len(due)} job(s) in all"


def _run_here(planned: Planned, due: Sequence[Job], queue: Mapping[str, str]) -> int:
    from nnunet_logvmamba.cli import doctor
    from nnunet_logvmamba.plugin.study import run_here

    there = [number for number in planned.jobs_begun.values() if number in queue]
    if there:
        raise UserError(
            f"{len(there)} job(s) of this study are in SLURM's queue, the first is {there[0]}: give --on slurm again, "
            "or logvmamba study cancel first"
        )
    failure = doctor.first_obstacle(planned.part(0).device)
    if failure is not None:
        raise UserError(f"training would fail: {failure.name}: {failure.text} (logvmamba doctor shows all)")
    _say(_counted(planned, due))
    run_here(planned, due, **_how())
    _say(f"\ndone: {' and '.join(map(str, planned.tables or [planned.folder]))}")
    return 0


def _hand_over(planned: Planned, due: Sequence[Job]) -> int:
    from nnunet_logvmamba.plugin.study import alone

    with alone(planned.folder) as doing:
        doing("submit")
        return _submit(planned, due)


def _submit(planned: Planned, due: Sequence[Job]) -> int:
    from nnunet_logvmamba.plugin import cluster

    queue, begun = cluster.queue(), planned.jobs_begun
    there = {job: begun[planned.key(job)] for job in due if begun.get(planned.key(job)) in queue}
    # What waits for trainings is to wait for those that are handed over now, too.
    late = [job for job in there if job.stage in ("predict", "compare") and queue[there[job]] != "RUNNING"]
    new = [job for job in due if job not in there]
    preparing = next((there[job] for job in there if job.stage == "prepare"), None)
    if preparing and planned.prepares_more:  # it knows nothing of what was added
        new = [job for job in due if job.stage == "prepare" or job not in there]
    if not new:
        _say(f"nothing to submit: {len(there)} job(s) are in the queue, and all else is done")
        return 0
    replaced = [there.pop(job) for job in late]
    new = [job for job in due if job in new or job in late]
    study = planned.study
    stages = cluster.stages_of(planned, new)
    numbers = cluster.submit(study.name, planned.folder / "jobs", stages, study.cluster, there.values(), preparing)
    cluster.cancel(replaced)
    planned.remember(dict(zip(map(planned.key, new), numbers)))
    _say(f"{_counted(planned, due)}: {len(new)} submitted to SLURM, {len(there)} there already")
    _say("logvmamba study status shows how far they are")
    return 0


def _queue(planned: Planned) -> dict[str, str]:
    """What SLURM has, if jobs of the study were ever submitted to it."""
    from nnunet_logvmamba.plugin import cluster

    return cluster.queue(f"remove {planned.record}") if any(planned.jobs_begun.values()) else {}


def _status(planned: Planned) -> int:
    from nnunet_logvmamba.evaluation.report import as_text_table
    from nnunet_logvmamba.plugin.study import running_here

    try:
        queue = _queue(planned)
    except UserError as error:
        terminal.show(f"note: {error}")
        queue = {}
    here = running_here(planned.folder)
    states = {job: planned.state(job, queue, None if here is None else here.doing) for job in planned.jobs}
    shown = {job: state for job, state in states.items() if job.stage != "prepare" or state.word != "missing"}
    rows = [[planned.key(job), state.word, state.detail] for job, state in shown.items()]
    print(as_text_table(["job", "state", "more"], rows, terminal.width()))
    words = [state.word for job, state in states.items() if job.stage == "train"]
    counts = {word: words.count(word) for word in ("done", "running", "waiting", "failed", "missing")}
    terminal.show("\ntrainings: " + ", ".join(f"{count} {word}" for word, count in counts.items() if count))
    for table in planned.tables:
        terminal.show(f"comparison: {table}")
    return 0


def _cancel(planned: Planned) -> int:
    import os
    import signal
    import socket

    from nnunet_logvmamba.plugin import cluster
    from nnunet_logvmamba.plugin.study import running_here

    here = running_here(planned.folder)
    if here is not None:
        if here.host != socket.gethostname():
            raise UserError(f"the study runs on {here.host} as process {here.process}: end it there")
        os.kill(here.process, signal.SIGTERM)
        terminal.show(f"ended process {here.process}, which ran the study on this machine")
    queue = _queue(planned)
    numbers = sorted(number for number in planned.jobs_begun.values() if number in queue)
    cluster.cancel(numbers)
    terminal.show(f"{len(numbers)} job(s) cancelled; what is done stays, and logvmamba study resume goes on")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from nnunet_logvmamba.plugin import cluster, study_file

    asked = study_file.read_cluster(args.cluster)
    for folder, what in ((args.model, "a trained model"), (args.images, "scans")):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: name that of {what}")
    if args.on == "slurm":
        _check_cluster(dry_run=args.dry_run)
    from nnunet_logvmamba.plugin import first_run  # late, because these import torch
    from nnunet_logvmamba.plugin.shards import Shards
    from nnunet_logvmamba.results.runs import absolute, folds_of

    if args.on == "slurm":
        device = args.device if args.device != "auto" else "cuda" if asked.gpus else "cpu"
    else:
        device = first_run.device_here(args.device)
    model, images, out = absolute(args.model), args.images.resolve(), args.out.resolve()
    folds = args.folds or [fold.name.removeprefix("fold_") for fold in folds_of(model)]
    shards = Shards(model, images, out, tuple(folds), args.shards, device)
    shards.check()
    if shards.is_done:
        _say(f"nothing to do: {len(shards.cases)} case(s) are predicted: {out}")
        return 0
    record = shards.staged / first_run.PREDICTED_BY
    queue = cluster.queue(f"empty the list of 'jobs' in {record}") if shards.jobs_begun else {}
    there = [number for number in shards.jobs_begun if number in queue]
    if there:
        raise UserError(f"{len(there)} job(s) of this prediction are in the queue, the first is {there[0]}")
    due = shards.due()
    if args.dry_run:
        first_run.run_steps(map(shards.step, due), shards.logs, dry_run=True, **_how())
        return 0
    try:
        with claimed(shards.staged / "local.lock", "predict"):
            return _begin_shards(shards, due, asked if args.on == "slurm" else None)
    except HeldError as error:
        raise UserError(f"{error.holder} is at this prediction already: wait for its end, or end it") from None


def _begin_shards(shards: Shards, due: Sequence[int], asked: Cluster | None) -> int:
    """Predict here, or hand over to a cluster what is due."""
    from nnunet_logvmamba.plugin import cluster, first_run
    from nnunet_logvmamba.plugin.shards import Shard

    shards.begin()
    if asked is not None:
        gpus = asked.gpus if shards.device == "cuda" else 0
        stages = [cluster.Stage("shards", [Shard(shards, shard) for shard in due], gpus)]
        stages.append(cluster.Stage("gather", [Shard(shards)], gpus))
        shards.begin(cluster.submit("predict", shards.staged / "jobs", stages, asked))
        _say(f"{len(due)} shard(s) submitted to SLURM; {shards.out} is written when all cases are there")
        return 0
    for shard in due:
        try:
            shards.predict(shard, **_how())
        except first_run.StepFailed as error:  # tried once more below
            _say(f"\n{error}")
    shards.gather(**_how())
    _say(f"\ndone: {len(shards.cases)} case(s): {shards.out}")
    return 0
