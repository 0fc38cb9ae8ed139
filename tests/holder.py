"""Another process that holds a file, as :mod:`nnunet_logvmamba.claims` does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from nnunet_logvmamba.claims import claimed

with claimed(Path(sys.argv[1]), sys.argv[2]):
    {inside}
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held_elsewhere(file: Path, doing: str, inside: str = "pass") -> Iterator[subprocess.Popen]:
    """Have the file held while the block runs, or until the process that is given is killed or reads a line."""
    words = [sys.executable, "-c", SCRIPT.format(inside=inside), str(file), doing]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()
