"""Headless Chromium: what a page becomes in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)


class Browser:
    """Opens pages from files, each time with an empty profile of its own."""

    def __init__(self, program: str, folder: Path):
        self.program, self.folder, self.count = program, folder, 0

    def _run(self, page: Path, *options: str) -> str:
        self.count += 1
        profile = self.folder / f"profile_{self.count}"
        profile.mkdir()
        command = [self.program, *OPTIONS.split(), f"--user-data-dir={profile}", *options, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def dom(self, page: Path) -> str:
        """Give the page as HTML after it was loaded, scripts and refused loads included."""
        return self._run(page, "--dump-dom", "--enable-logging=stderr")

    def screenshot(self, page: Path, target: Path, width: int = 1150, height: int = 1800) -> Path:
        """Write a PNG of the top of the page."""
        self._run(page, f"--window-size={width},{height}", f"--screenshot={target}")
        return target


def open_browser(folder: Path) -> Browser:
    """Give the browser; without Chromium the test is skipped."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        program = shutil.which(name)
        if program:
            return Browser(program, folder)
    pytest.skip("needs Chromium to open the page, and there is none (Debian: apt-get install chromium)")
