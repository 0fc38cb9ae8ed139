"""Whether a checkpoint on the disk is what was written: by the checksums that its zip holds, without torch."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path


def damage_of(path: Path) -> str | None:
    """Say what is wrong with a checkpoint that ``torch.save`` wrote, reading every member to its checksum.

    Torch itself compares none of them, so that flipped bytes become weights.

    Args:
        path: A file.

    Returns:
        Half a sentence, such as "is empty", to follow the name of the file; None if it is whole.

    Raises:
        OSError: If the file cannot be read.
    """
    size = path.stat().st_size
    if size == 0:
        return "is empty"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            names = archive.namelist()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        with path.open("rb") as file:
            begins_as_zip = file.read(4) == b"PK\x03\x04"
        return f"is cut off or damaged ({size:,} bytes)" if begins_as_zip else "is no zip, as torch.save writes"
    if broken is not None:
        return f"is damaged: the checksum of its part '{broken}' is wrong"
    if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return "is a zip, but no checkpoint"
    return None
