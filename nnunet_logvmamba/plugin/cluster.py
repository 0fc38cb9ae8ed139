"""Studies on SLURM, through submitit: jobs are handed over and need nothing of ours until they run."""

from __future__ import annotations

import getpass
import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.plugin.study_file import Cluster, Study

if TYPE_CHECKING:
    from nnunet_logvmamba.plugin.study import Job, Planned

MOST_TIMEOUTS = 1000
"""So often may the time of a job be up before it is given up."""
SENT_AWAY_S = 600
"""The longest time between the signal to end and the end that a job waits for."""
_PATHS = {"nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer", "nnUNet_logvmamba_pretrained"}
"""Variables that name a folder or file, or several, separated like those of ``PATH``; the last one may say none."""


class Task(Protocol):
    """What a job does; it can be pickled, and called again where it was interrupted."""

    def __call__(self) -> None:
        """Do it."""

    def reached(self) -> str:
        """Describe how far it is: the text differs once it has got further."""


@dataclass(frozen=True)
class Stage:
    """Jobs that begin together.

    Attributes:
        work: What each does.
        gpus: For each.
        waits: ``ok`` if the stage before must have succeeded, ``one`` if it must have ended somehow, ``any`` if all
            before must.
    """

    name: str
    work: Sequence[Task]
    gpus: int = 0
    waits: str = "any"


@dataclass(frozen=True)
class Work:
    """A job of a study."""

    study: Study
    job: Job

    def __call__(self) -> None:
        from nnunet_logvmamba.plugin.study import Planned, carry_out  # late, because it imports torch

        needs_device = self.job.stage in ("train", "predict")  # the others get no GPU
        carry_out(Planned(self.study, on="slurm", elsewhere=not needs_device), self.job)

    def reached(self) -> str:
        """What it would go on from, as :meth:`Planned.reached`; all but trainings begin anew."""
        from nnunet_logvmamba.plugin.study import Planned

        return Planned(self.study, on="slurm").reached(self.job) if self.job.stage == "train" else self.job.stage


@dataclass
class Resumable:
    """Work as SLURM runs it, from the beginning or again.

    Attributes:
        environment: Variables that are set for it.
        limit_s: Seconds that it may run before it is put back into the queue.
        before: What it had ``reached`` when its time was up for the last time.
        in_vain: So often in a row its time was up and it had got no further.
    """

    work: Task
    environment: Mapping[str, str]
    limit_s: float = inf
    before: str | None = None
    in_vain: int = 0
    begun: float = field(default=0.0, compare=False)

    def __call__(self) -> None:
        self.begun = time.time()
        for name, value in self.environment.items():
            if name.startswith("nnUNet_") or name not in os.environ:  # what a node says about threads, stays
                os.environ[name] = value
        try:
            self.work()
        except UserError as error:
            if getattr(error, "code", 0) == -signal.SIGTERM:
                # All of a job that is sent away hears that it is to end, its command at once. If it ended now it would
                # count as failed; SLURM is about to end it, and then puts it back where that is its way.
                time.sleep(SENT_AWAY_S)
            raise

    def checkpoint(self) -> Any:
        """Give what is put back into the queue when the time is nearly up: the same, which goes on where it was.

        Raises:
            UserError: If its time was up for the third time and it had got no further; it never would.
        """
        from submitit.helpers import DelayedSubmission

        reached = self.work.reached()
        # One that was sent away to make room for others has not had its time. SLURM may give notice a minute early.
        if time.time() - self.begun > 0.9 * self.limit_s - 60:
            self.in_vain = self.in_vain + 1 if reached == self.before else 0
            self.before = reached
            if self.in_vain > 1:
                raise UserError(
                    f"its time was up {self.in_vain + 1} times, each after {self.limit_s / 60:.0f} min, and it had got "
                    "no further, so it was not put back into the queue: give it more time, then study resume"
                )
        return DelayedSubmission(self)


def stages_of(planned: Planned, due: Sequence[Job]) -> list[Stage]:
    """Give the stages of what is due of a study."""
    from nnunet_logvmamba.plugin.study import STAGES

    gpus = planned.study.cluster.gpus if planned.study.device == "cuda" else 0
    return [
        Stage(
            stage,
            [Work(planned.study, job) for job in due if job.stage == stage],
            gpus if stage in ("train", "predict") else 0,
            # A training needs what is prepared; what comes later says itself what is missing.
            {"prepare": "one", "train": "ok"}.get(stage, "any"),
        )
        for stage in STAGES
    ]


def submit(
    name: str,
    folder: Path,
    stages: Sequence[Stage],
    cluster: Cluster,
    waited_for: Iterable[str] = (),
    behind: str | None = None,
) -> list[str]:
    """Hand jobs over.

    Args:
        name: That the jobs have in the queue.
        folder: Where submitit and SLURM write to.
        stages: One after the other; those without work are left out.
        waited_for: Numbers of jobs in the queue for which stages that wait for ``any`` wait, too.
        behind: Number of a job in the queue that is taken for the stage before the first.

    Returns:
        Numbers in the queue, in the order of the work.

    Raises:
        UserError: If there is no submitit, no SLURM, or it refuses a job; then none is in the queue.
    """
    check()
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    numbers: list[str] = []
    arrays = {number.partition("_")[0] for number in waited_for}
    submitted: list[str] = []
    last = behind
    try:
        for stage in stages:
            if not stage.work:
                continue
            needed = {f"afterany:{number}" for number in arrays} if stage.waits == "any" else set()
            if stage.waits != "any" and last:
                needed.add(f"{'afterok' if stage.waits == 'ok' else 'afterany'}:{last}")
            executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=MOST_TIMEOUTS)
            executor.update_parameters(**_parameters(f"{name}-{stage.name}", folder, cluster, stage.gpus, needed))
            with redirect_stderr(io.StringIO()), executor.batch():  # what sbatch says is in the error, too
                limit_s = 60 * cluster.time - cluster.signal_s
                environment = _environment(cluster, stage.gpus)
                jobs = [executor.submit(Resumable(work, environment, limit_s)) for work in stage.work]
            numbers += [job.job_id for job in jobs]
            last = jobs[0].job_id.partition("_")[0]
            arrays.add(last)
            submitted.append(last)
        _run("scontrol", "release", *submitted)
    except BaseException as error:
        cancel(numbers)
        if isinstance(error, (FailedSubmissionError, FailedJobError, OSError)):
            lines = [line for line in str(error).splitlines() if "error" in line.lower()] or [str(error)]
            raise UserError(f"the cluster refuses the jobs, and nothing was submitted: {lines[-1].strip()}") from error
        raise
    return numbers


def check() -> None:
    """Refuse to go on without submitit or SLURM.

    Raises:
        UserError: Naming what is missing.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError("--on slurm needs submitit: pip install submitit") from None
    missing = [name for name in ("sbatch", "squeue", "scancel", "scontrol") if shutil.which(name) is None]
    if missing:
        raise UserError(f"there is no {missing[0]} here: run this where jobs are submitted to SLURM, or --on local")


def _parameters(name: str, folder: Path, cluster: Cluster, gpus: int, needed: Iterable[str]) -> dict[str, Any]:
    # What not every submitit of this series has an option of its own for.
    more: dict[str, Any] = {
        "account": cluster.account,
        "chdir": os.path.abspath(folder),  # the folder of the call may be gone, or another one on a node
        "dependency": ",".join(sorted(needed)),
        "hold": True,  # until all are accepted
        "kill-on-invalid-dep": "yes",
        "requeue": True,  # a cluster may have it that nothing goes back into the queue unless it was asked for
    }
    wanted = {
        "job_name": name,
        "time": cluster.time,
        "partition": cluster.partition,
        "mem": cluster.memory,
        "cpus_per_task": cluster.cpus,
        "gpus_per_node": None if not gpus else f"{cluster.gpu}:{gpus}" if cluster.gpu else gpus,
        "array_parallelism": cluster.array_limit,
        "signal_delay_s": cluster.signal_s,
        "setup": list(cluster.setup),
        # srun of newer versions does not take it from sbatch
        "srun_args": None if cluster.cpus is None else [f"--cpus-per-task={cluster.cpus}"],
        "additional_parameters": {**{key: value for key, value in more.items() if value}, **cluster.sbatch},
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _environment(cluster: Cluster, gpus: int) -> dict[str, str]:
    """nnU-Net's variables, as a node may start with none: paths absolute, since a job starts elsewhere, and as many
    workers and threads as it has cores, of which each GPU has its own.
    """
    found = {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")}
    for name in _PATHS & found.keys():
        parts = filter(None, found[name].split(os.pathsep))
        found[name] = os.pathsep.join(
            part if part == "none" else os.path.abspath(os.path.expanduser(part)) for part in parts
        )
    if cluster.cpus is None:
        return found
    cores = str(max(1, cluster.cpus // max(1, gpus)))
    return {"nnUNet_n_proc_DA": cores, "OMP_NUM_THREADS": cores, **found}


def queue(or_else: str = "") -> dict[str, str]:
    """Give the states of the user's jobs, by their numbers, such as ``{"12_0": "RUNNING"}``.

    Args:
        or_else: What to do where no job is left, if there is no SLURM here.

    Raises:
        UserError: If there is no SLURM here to be asked.
    """
    if shutil.which("squeue") is None:
        raise UserError(
            "jobs were submitted to SLURM, and there is no squeue here that would tell what became of them: run this "
            "where they were submitted" + (f", or {or_else}, if none of them is left" if or_else else "")
        )
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i %T"]
    return dict(line.split() for line in _run(*command).splitlines() if line.strip())


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise UserError(f"{command[0]} does not do what it is told: {said}")
    return done.stdout


def cancel(numbers: Iterable[str]) -> None:
    """Take jobs out of the queue, and end those that run."""
    found = sorted(numbers)
    if found:
        subprocess.run(["scancel", *found], capture_output=True, check=False)
