"""Whether a checkpoint is whole: torch writes a checksum of every part, and does not look at them when it reads."""

from __future__ import annotations

import zipfile
from pathlib import Path


def damage_of(path: Path) -> str | None:
    """Say what is damaged in a checkpoint, a zip file as torch writes it, by reading all of it once.

    Returns:
        A few words, or None if it is whole.

    Raises:
        OSError: If the file is not there or cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4)
        if not start:
            return "it is empty"
        if start != b"PK\x03\x04":
            return "it does not begin as a file of PyTorch does"
        try:
            with zipfile.ZipFile(file) as archive:
                part = archive.testzip()
        except zipfile.BadZipFile as error:
            return "its end is missing" if "is not a zip file" in str(error) else f"{error}".rstrip(".")
        except (OSError, MemoryError):
            raise
        except Exception as error:  # what is wrong with its table of contents may show as anything
            return f"its table of contents is wrong: {type(error).__name__}"
    return None if part is None else f"the checksum of its part '{part}' is wrong"
