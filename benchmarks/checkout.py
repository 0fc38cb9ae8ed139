"""Which code it is that figures are of; needs no package."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit_of_checkout() -> str | None:
    """Name of the commit that is checked out, with ``-dirty`` where files differ from it but for measured results; None
    without git or a checkout.
    """
    if shutil.which("git") is None:
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    name = git("describe", "--always")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    return f"{name}-dirty" if name and changed else name or None


def digest_of_code() -> str:
    """A checksum of everything that figures depend on: the package and the benchmarks, by names and contents."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "nnunet_logvmamba").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
