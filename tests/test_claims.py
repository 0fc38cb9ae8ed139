"""Files that one process holds, so that no two do the same at the same time."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from holder import held_elsewhere

from nnunet_logvmamba.claims import HeldError, Holder, claimed, holder_of


def test_another_process_is_kept_out_and_told_who_is_at_it(tmp_path):
    file = tmp_path / "new" / "a.lock"
    assert holder_of(file) is None
    assert not file.parent.exists()
    with held_elsewhere(file, "train") as other:
        expected = Holder(socket.gethostname(), other.pid, "train")
        assert holder_of(file) == expected
        with pytest.raises(HeldError, match=f"process {other.pid} of ") as error, claimed(file):
            pytest.fail("it was held by two")
        assert error.value.holder == expected
    assert holder_of(file) is None
    with claimed(file, "validate"):
        assert '"validate"' in file.read_text()


@pytest.mark.parametrize("left", ["pass", "import os, time; os.fork() or (os.close(1), time.sleep(20), os._exit(0))"])
def test_a_killed_process_lets_go_even_if_what_it_forked_lives_on(tmp_path, left):
    with held_elsewhere(tmp_path / "a.lock", "train", left) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        with claimed(tmp_path / "a.lock"):
            pass


def test_who_waits_says_so_once_and_goes_on_when_it_is_free(tmp_path):
    file, told, reached = tmp_path / "a.lock", [], threading.Event()

    def take() -> None:
        with claimed(file, waits=told.append):
            reached.set()

    with held_elsewhere(file, "preprocess") as other:
        thread = threading.Thread(target=take)
        thread.start()
        while not told:
            assert thread.is_alive()
            time.sleep(0.02)
        assert not reached.wait(0.3)
        assert [holder.process for holder in told] == [other.pid]
        other.communicate("\n")
        assert reached.wait(20)
        thread.join()
    assert len(told) == 1


def test_a_holder_that_has_not_written_who_it_is_keeps_others_out(tmp_path):
    file = tmp_path / "a.lock"
    with held_elsewhere(file, "train"):
        os.truncate(file, 3)
        assert holder_of(file) == Holder("?", 0, "")


def test_who_only_looks_keeps_nobody_out(tmp_path):
    """A look takes the lock for a moment; what comes in that moment tries again."""
    file = tmp_path / "a.lock"
    file.touch()
    script = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.lockf(f, fcntl.LOCK_SH); print(flush=True)"
    words = [sys.executable, "-c", script + "; time.sleep(0.4)", str(file)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as looking:
        looking.stdout.readline()
        with claimed(file):
            pass


def test_a_file_is_there_for_all_who_share_the_folder(tmp_path):
    before = os.umask(0o022)
    try:
        with claimed(tmp_path / "a.lock"):
            assert (tmp_path / "a.lock").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_a_file_of_somebody_else_keeps_nobody_from_his_work(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    assert holder_of(tmp_path / "a.lock") is None
    with (
        pytest.warns(UserWarning, match=r"a\.lock cannot be locked \(Permission denied\)"),
        claimed(tmp_path / "a.lock"),
    ):
        pass


def test_where_nothing_can_be_locked_there_is_a_warning(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with (
        pytest.warns(UserWarning, match=r"a\.lock cannot be locked \(No locks available\)"),
        claimed(tmp_path / "a.lock"),
    ):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert holder_of(tmp_path / "a.lock") is None
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with claimed(tmp_path / "a.lock"):
            pass
