"""Interrupts that come while a process begins: it is ended, as one that runs is."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from nnunet_logvmamba import interrupts
from nnunet_logvmamba.plugin import first_run

WHICH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def heeded():
    """Ctrl-C is heeded, which a process that a shell began in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("which", WHICH)
def test_what_comes_in_a_block_comes_at_its_end(which):
    said = []

    def begin() -> None:
        with interrupts.put_off():
            signal.raise_signal(which)
            said.append("known")
        said.append("too late")

    with pytest.raises(KeyboardInterrupt), interrupts.unwinding():
        begin()
    assert said == ["known"]
    with pytest.raises(KeyboardInterrupt), interrupts.unwinding():
        signal.raise_signal(which)


def test_what_comes_ahead_of_an_error_is_not_lost():
    def fail() -> None:
        with interrupts.put_off():
            signal.raise_signal(signal.SIGTERM)
            raise OSError("no such program")

    with pytest.raises(KeyboardInterrupt) as raised, interrupts.unwinding():
        fail()
    assert str(raised.value.__context__) == "no such program"


def test_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interrupts.put_off():
            signal.raise_signal(signal.SIGTERM)
    finally:
        assert signal.signal(signal.SIGTERM, before) is signal.SIG_IGN


def test_other_threads_have_none_to_put_off():
    said = []

    def begin() -> None:
        with interrupts.put_off():
            said.append("begun")

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert said == ["begun"]


@pytest.mark.parametrize("which", WHICH)
def test_a_step_is_ended_by_an_interrupt_that_comes_while_it_begins(which, tmp_path, monkeypatch):
    begun = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            begun.append(self)
            signal.raise_signal(which)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    step = first_run.Step("wait", (sys.executable, "-c", "import time; time.sleep(60)"))
    with pytest.raises(KeyboardInterrupt), interrupts.unwinding():
        first_run.execute(step, tmp_path)
    (process,) = begun
    assert process.returncode in (-signal.SIGTERM, -signal.SIGKILL)
