"""Files that are replaced in one step."""

import errno
import os
import re
import stat
from pathlib import Path
from threading import Thread

import pytest

from nnunet_logvmamba import files
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import locked, replace_text, replacing, staged_files


def test_a_file_that_is_replaced_hands_on_its_permissions_and_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "plans.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    replace_text(link, "new")
    assert link.is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o640)
    assert sorted(os.listdir(tmp_path)) == ["link.json", "plans.json"]


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "page.html"
    target.write_text("old")

    def write_half() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


def test_only_what_a_killed_process_of_this_machine_left_is_removed(tmp_path):
    target = tmp_path / "splits.json"
    child = os.fork()
    if not child:
        with replacing(target) as temporary:
            temporary.write_text("half")
            os._exit(0)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(f".{child}")
    elsewhere = left.with_name(left.name.replace(files._machine(), "0" * 8))
    elsewhere.write_text("half, and another machine is at it")
    replace_text(target, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, target])


def test_a_container_has_a_name_of_its_own(monkeypatch):
    here = files._machine()
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result([0, int(str(path) == "/proc/self/ns/pid"), *[0] * 8]))
    assert files._machine.__wrapped__() != here


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught:
        replace_text(tmp_path / "nowhere" / "page.html", "new")
    assert caught.value.filename == str(tmp_path / "nowhere" / "page.html")


def test_a_folder_is_put_in_its_place_where_the_system_cannot_wait_for_folders(tmp_path, monkeypatch):
    sync = os.fsync

    def of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    with staged_files(tmp_path / "model", overwrite=False) as staged:
        (staged / "fold_0").mkdir()
        (staged / "fold_0" / "weights").write_text("x")
    assert (tmp_path / "model" / "fold_0" / "weights").read_text() == "x"


NAMES = ("fold_0", "fold_1", "plans.json", "summary.json")


def fill(folder: Path, content: str) -> Path:
    for name in NAMES:
        path = folder / name if name.endswith("json") else folder / name / "weights"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("moves", range(2 * len(NAMES)))
def test_an_interrupt_between_any_two_moves_leaves_the_target_as_it_was(tmp_path, monkeypatch, moves, after):
    """Before a move and after it, which is where Python tells of one that came meanwhile."""
    target = fill(tmp_path / "model", "old")
    before, replace, done = contents(target), os.replace, []

    def interrupted(source, destination):
        done.append(destination)
        if len(done) != moves + 1 or after:
            replace(source, destination)
        if len(done) == moves + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        staged_files(target, overwrite=True, last=("summary.json",)) as staged,
    ):
        fill(staged, "new")
    assert len(done) > moves
    assert contents(target) == before


def test_what_is_in_its_place_stays_there_if_the_old_cannot_be_removed(tmp_path, monkeypatch):
    target, removed = fill(tmp_path / "model", "old"), []

    def interrupted(folder, **_):
        removed.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), staged_files(target, overwrite=True) as staged:
        fill(staged, "new")
    assert len(removed) == 1
    assert {name: (target / name).read_text() for name in NAMES[2:]} == dict.fromkeys(NAMES[2:], "new")
    assert (target / "fold_1" / "weights").read_text() == "new"


def test_what_cannot_be_put_back_is_not_removed(tmp_path, monkeypatch):
    target, replace, done = fill(tmp_path / "model", "old"), os.replace, []

    def interrupted(source, destination):
        done.append(destination)
        if len(done) > len(NAMES):  # and again while the old ones are put back
            raise KeyboardInterrupt
        replace(source, destination)

    monkeypatch.setattr(files.os, "replace", interrupted)
    with (
        pytest.raises(UserError, match="could not be put back as it was: move back what lies in ") as caught,
        staged_files(target, overwrite=True) as staged,
    ):
        fill(staged, "new")
    kept = Path(re.findall("lies in (.*)", str(caught.value))[0])
    assert contents(kept) == contents(fill(tmp_path / "expected", "old"))


@pytest.mark.skipif(os.name == "nt", reason="this system locks no folders")
def test_a_folder_is_locked_for_one_block_at_a_time_and_nothing_lies_in_it(tmp_path):
    order = []

    def second() -> None:
        with locked(tmp_path):
            order.append("second")

    with locked(tmp_path):
        other = Thread(target=second)
        other.start()
        other.join(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "make room, or name"), (errno.EACCES, "name")])
def test_room_is_asked_for_only_where_there_is_none(number, remedy, tmp_path):
    with (
        pytest.raises(UserError, match=rf"out/a cannot be written \(.*\): {remedy} another folder"),
        staged_files(tmp_path / "out", overwrite=False) as staged,
    ):
        raise OSError(number, os.strerror(number), str(staged / "a"))
    assert not (tmp_path / "out").exists()


def test_a_folder_may_be_written_where_its_nearest_parent_may_and_not_where_nobody_may_look(tmp_path, monkeypatch):
    assert files.may_be_written(tmp_path)
    assert files.may_be_written(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    assert not files.may_be_written(tmp_path / "file" / "a")
    home = tmp_path / "home"
    home.mkdir()
    look = os.stat

    def closed(path, *args, **kwargs):
        if home in Path(path).parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", closed)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != home)
    assert not files.may_be_written(home / ".triton" / "cache")
