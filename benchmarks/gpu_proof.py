"""Run what is due on a GPU within a budget: ``bash benchmarks/gpu_proof.sh run [--budget-s 660] [--out FOLDER]``.

Unpacks what ``prepare`` left, then lets one process go through the steps and stops it where a step exceeds its share of
the time or the budget is spent; whatever a step has found by then is in ``gpu_proof.jsonl``. A second run goes on with
the steps that have not ended. ``--dry-run`` does the same on a CPU at a size for seconds, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import gpu_journal
from checkout import commit_of_checkout, digest_of_code

from nnunet_logvmamba.interrupts import unwinding

HERE = Path(__file__).resolve().parent
PREPARED = HERE.parent / ".gpu"
RESULTS = HERE / "results"
# A step that was told to stop between two rows has this long to reach the next one.
GRACE_S = 5.0
# To import everything, before the first step begins.
STARTING_S = 60.0


def unpack(prepared: Path, into: Path) -> dict[str, str]:
    """Unpack what was prepared, side by side, and give the variables with which it is found."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)

    def extract(archive: Path) -> None:
        with tarfile.open(archive) as file:
            file.extractall(into, filter="data")

    with ThreadPoolExecutor() as pool:
        list(pool.map(extract, sorted(prepared.glob("*.tar*"))))
    # Triton finds what belongs to a kernel by absolute paths, which are those of the folder that it was compiled in.
    for group in (into / "triton").glob("*/__grp__*.json"):
        content = json.loads(group.read_text(encoding="utf-8"))
        content["child_paths"] = {name: str(group.parent / name) for name in content["child_paths"]}
        group.write_text(json.dumps(content), encoding="utf-8")
    # Kernels compiled anew are kept there too, so that the steps share them.
    variables = {"TRITON_CACHE_DIR": str(into / "triton"), "GPU_PROOF_WORK": str(into)}
    found = [str(HERE.parent), *(str(into / name) for name in ("site", "mamba"))]
    variables["PYTHONPATH"] = os.pathsep.join([*found, *filter(None, [os.environ.get("PYTHONPATH")])])
    return variables


def build_mamba(prepared: Path, into: Path, environment: dict[str, str]) -> subprocess.Popen | None:
    """Start to build mamba-ssm's kernel where it was not built beforehand."""
    sources = sorted(prepared.glob("mamba_ssm-*.tar.gz"))
    if not sources or (into / "mamba" / "selective_scan_cuda.so").exists() or shutil.which("nvcc") is None:
        return None
    log = (into / "mamba.log").open("w")
    command = [sys.executable, str(HERE / "mamba_kernel.py"), str(sources[0]), str(into / "mamba")]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def end(*processes: subprocess.Popen, patience_s: float = 2.0) -> None:
    """End processes with all that they started; what does not heed a word in so many seconds is killed."""
    for word in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, word)
        until = time.time() + patience_s
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, until - time.time()))


def supervise(steps: list[str], folder: Path, commit: str, options: list[str], environment: dict, until: float) -> None:
    """Let a process run the steps; where one exceeds its share, stop it and go on with the next in a new process."""
    while steps and time.time() < until:
        command = [sys.executable, str(HERE / "gpu_steps.py"), *steps, "--out", str(folder), "--commit", commit]
        command += ["--until", str(until), "--parent", str(os.getpid()), *options]
        began = round(time.time(), 1)  # as in the rows
        worker = subprocess.Popen(command, env=environment, start_new_session=True)
        deadline = min(until, began + STARTING_S)
        try:
            while worker.poll() is None and time.time() < deadline + GRACE_S:
                time.sleep(0.2)
                _, deadline = last_begun(folder, steps, began) or (None, deadline)
            code = worker.poll()
        finally:
            end(worker)
        if code == 0:
            return
        why = f"exit code {code}" if code else "the budget is spent" if time.time() > until else "its share is spent"
        running = last_begun(folder, steps, began)
        if running is None:
            print(f"gpu_proof: no step has begun, {why}", flush=True)
            if code:  # nor would it the next time
                return
            continue
        current, _ = running
        steps = steps[steps.index(current) + 1 :]
        if gpu_journal.read(folder)[current]["state"] != "end":  # else it went down behind that step
            gpu_journal.write(folder, current, "stopped", why=why)
            print(f"gpu_proof: {current}: stopped, {why}", flush=True)


def last_begun(folder: Path, steps: list[str], since: float) -> tuple[str, float] | None:
    """The last of these steps that has begun since then, and when it must end; None if there is none."""
    found = gpu_journal.read(folder)
    begun = [(step, found[step]["deadline"]) for step in steps if step in found and found[step]["at"] >= since]
    return begun[-1] if begun else None


def main() -> int:
    """Run all steps that are due.

    Told to end, it ends what it started first; a step that ran then has not ended, and is the next run's.
    """
    began = time.time()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-s", type=float, default=660, help="seconds for everything, default 660")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for gpu_proof.jsonl, default benchmarks/results"
    )
    parser.add_argument("--steps", help="only these, by commas")
    parser.add_argument("--again", action="store_true", help="run them though they have ended")
    parser.add_argument("--prepared", type=Path, default=PREPARED, help="what prepare has made, default .gpu")
    parser.add_argument("--commit", help="what to write as commit where this is no checkout")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at a size for seconds; needs --out")
    args = parser.parse_args()
    if args.dry_run and args.out.resolve() == RESULTS:
        parser.error("a trial on the CPU is no result; name another folder with --out")
    unknown = set((args.steps or "").split(",")) - {"", *gpu_journal.SHARES}
    if unknown:
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(gpu_journal.SHARES)}")
    try:
        commit = args.commit or commit_of_code(args.prepared)
    except ValueError as error:
        parser.error(str(error))
    folder, until = args.out.resolve(), began + args.budget_s
    earlier = RESULTS / gpu_journal.NAME
    if not (folder / gpu_journal.NAME).exists() and earlier.exists() and not args.dry_run:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(earlier, folder)  # of an earlier run, on a machine that has gone
    steps = args.steps.split(",") if args.steps else list(gpu_journal.SHARES)
    if not args.again:
        steps = [step for step in gpu_journal.missing(gpu_journal.read(folder), commit) if step in steps]
    into = Path(tempfile.gettempdir()) / f"gpu_proof_{os.getuid()}"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | unpack(args.prepared, into)
    print(f"gpu_proof: unpacked in {time.time() - began:.0f} s", flush=True)
    builder = None
    options = ["--device", "cpu", "--tiny"] if args.dry_run else []
    with unwinding():
        try:
            builder = None if args.dry_run else build_mamba(args.prepared, into, environment)
            supervise(steps, folder, commit, options, environment, until)
        finally:
            end(*filter(None, [builder]))
            shutil.rmtree(into, ignore_errors=True)
    found = gpu_journal.read(folder)
    left = gpu_journal.missing(found, commit)
    wrong = [step for step, results in found.items() if results["wrong"]]
    said = (f"{word}: {', '.join(names) or 'nothing'}" for word, names in (("left", left), ("wrong", wrong)))
    print(f"gpu_proof: {time.time() - began:.0f} s; {'; '.join(said)}")
    return 1 if wrong else 0


def commit_of_code(prepared: Path) -> str:
    """Name of the commit that is checked out, or, in a copy of it, of the one that was prepared.

    Raises:
        ValueError: If the code is not the one that was prepared, or nothing says which one it is.
    """
    if commit := commit_of_checkout():
        return commit
    file = prepared / "commit"
    if not file.is_file():
        raise ValueError(f"this is no checkout, and there is no {file}; name the commit with --commit")
    commit, digest = file.read_text(encoding="utf-8").split()
    if digest != digest_of_code():
        raise ValueError(f"the code is not that of commit {commit}, which was prepared; name its own with --commit")
    return commit


if __name__ == "__main__":
    sys.exit(main())
