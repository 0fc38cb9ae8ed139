"""What the proof on a GPU has found, a line of JSON for each row, so that nothing is lost when time is up.

One file for all steps: a borrowed machine gives few files back. A step begins with its circumstances, has its rows, and
ends with what was wrong; one without an end was stopped. Where a step ran twice, the last time counts.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

NAME = "gpu_proof.jsonl"
# Seconds that each step may take, in the order in which they run; what one saves, the next ones have.
SHARES = {
    "checks": 30,
    "warm": 45,
    "correctness": 45,
    "scan": 60,
    "network": 100,
    "profile": 25,
    "network_2d": 40,
    "memory": 20,
    "amp": 40,
    "hippocampus": 155,
    "compile": 60,
}


def write(folder: Path, step: str, kind: str, **row: object) -> None:
    """Append a row: ``kind`` is begin, row, end or stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"step": step, "kind": kind, "at": round(time.time(), 1)} | row) + "\n"
    with (folder / NAME).open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # a machine went while it wrote, and this row would go with its half one
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, dict]:
    """What each step found: ``circumstances``, ``rows``, ``wrong``, ``state`` (begin, end or stopped) and ``why``; when
    it began, ``at``, and must end, ``deadline``.
    """
    found: dict[str, dict] = {}
    path = folder / NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the machine went while it was written
            continue
        name, kind = row.pop("step"), row.pop("kind")
        if kind == "begin":
            found[name] = row | {"rows": [], "wrong": [], "state": kind}
            continue
        step = found.setdefault(name, {"circumstances": {"commit": None}, "rows": [], "wrong": [], "at": 0.0})
        step["wrong"] += row.pop("wrong", [])
        if kind == "row":
            step["rows"].append({key: value for key, value in row.items() if key != "at"})
        else:
            step["state"] = kind
            step["why"] = row.get("why", "")
    return found


def missing(found: dict[str, dict], commit: str | None) -> list[str]:
    """Steps that have not ended at this commit, in their order."""
    return [
        step
        for step in SHARES
        if step not in found or found[step]["state"] != "end" or found[step]["circumstances"]["commit"] != commit
    ]
