"""How long ``logvmamba`` and the converters take to print a help and to answer a wrong call.

``python benchmarks/bench_commands.py``; the least wall and CPU seconds of five processes each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nnunet_logvmamba.cli import SUB_COMMANDS

CHECKOUT = Path(__file__).resolve().parents[1]
ROUNDS = 5
HELP, WRONG = 0.3, 0.5
"""Seconds that they may take."""

WRONG_CALLS = (
    ("run", "4", "2d"),
    ("plans", "-d", "4", "-c", "2d", "--name", "new"),
    ("summary", "-d", "4"),
    ("peers", "-d", "4"),
    ("check", "nowhere"),
    ("adopt", "nowhere", "-d", "4"),
    ("evaluate", "nowhere", "nowhere"),
    ("instances", "nowhere", "out"),
    ("compare", "nowhere"),
    ("report", "nowhere"),
    ("export", "nowhere", "out.onnx"),
    ("completion", "basch"),
)


def seconds(command: list[str], code: int, folder: str) -> tuple[float, float]:
    """Least wall and CPU seconds of a process, without nnU-Net's variables; it has to end with this exit code."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    found = []
    for _ in range(ROUNDS):
        before, start = os.times(), time.perf_counter()
        paths = {"PYTHONPATH": str(CHECKOUT)}
        done = subprocess.run(command, cwd=folder, env={**environment, **paths}, capture_output=True, text=True)
        if done.returncode != code:
            raise SystemExit(f"{command} ended with exit code {done.returncode}, not {code}: {done.stderr}")
        wall, after = time.perf_counter() - start, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        found.append((wall, cpu))
    walls, cpus = zip(*found)
    return min(walls), min(cpus)


def main() -> int:
    """Print a line for each; give 1 if one takes longer than it may, or ends otherwise than it should."""
    program, module = str(Path(sys.executable).with_name("logvmamba")), [sys.executable, "-m"]
    converters = [f"dataset_conversion.{path.stem}" for path in sorted((CHECKOUT / "dataset_conversion").glob("D*.py"))]
    calls = [([program, *words, "--help"], 0) for words in ([], *([name] for name in SUB_COMMANDS))]
    calls += [([program, *words], 2) for words in WRONG_CALLS]
    calls += [([*module, name, word], code) for name in converters for word, code in (("--help", 0), ("no", 2))]
    late = 0
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'wall, s':>8}{'CPU, s':>8}")
        for command, code in calls:
            limit = WRONG if code else HELP
            wall, cpu = seconds(command, code, folder)
            late += wall > limit
            shown = " ".join(Path(word).name for word in command)
            print(f"{wall:8.2f}{cpu:8.2f}  {shown}{f'  (more than {limit} s)' if wall > limit else ''}", flush=True)
    return min(late, 1)


if __name__ == "__main__":
    sys.exit(main())
