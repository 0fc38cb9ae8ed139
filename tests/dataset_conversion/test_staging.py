"""Targets appear only when they are complete, and old contents are kept until then."""

import pytest

from dataset_conversion.core import staging
from dataset_conversion.core.cases import ConversionError


def test_staged_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "new" / "target"
    with staging.staged_folder(target) as staged:
        (staged / "file").write_text("x")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_staged_folder_leaves_nothing_behind_after_an_error(tmp_path, error):
    def interrupted():
        with staging.staged_folder(tmp_path / "a" / "b" / "target") as staged:
            (staged / "file").write_text("x")
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_staged_folder_keeps_the_old_contents_after_an_error(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("precious")

    def interrupted():
        with staging.staged_folder(target, overwrite=True) as staged:
            (staged / "new").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "old").read_text() == "precious"


def test_staged_folder_replaces_a_full_target_only_when_told(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("x")
    with pytest.raises(ConversionError, match="--overwrite"), staging.staged_folder(target):
        pytest.fail("the block must not run")
    with staging.staged_folder(target, overwrite=True) as staged:
        (staged / "new").write_text("x")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_staged_folder_restores_the_old_contents_if_what_follows_fails(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("precious")

    def fail():
        assert [path.name for path in target.iterdir()] == ["new"]
        raise OSError(28, "No space left on device", "splits_final.json")

    def write():
        with staging.staged_folder(target, overwrite=True, then=fail) as staged:
            (staged / "new").write_text("x")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "old").read_text() == "precious"


def test_a_target_that_is_a_link_is_replaced_where_it_leads(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "old").write_text("x")
    (tmp_path / "link").symlink_to(real)
    with staging.staged_folder(tmp_path / "link", overwrite=True) as staged:
        (staged / "new").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in real.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_old_contents_that_cannot_be_removed_are_a_warning_once_the_new_ones_are_there(tmp_path, monkeypatch, capsys):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("x")

    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch, staging.staged_folder(target, overwrite=True) as staged:
        (staged / "new").write_text("x")
        patch.setattr("shutil.rmtree", refuse)
    (kept,) = tmp_path.glob(".target.replaced-*")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert capsys.readouterr().err == (
        f"warning: {kept} could not be removed (Permission denied); it holds the old contents of {target}, "
        "remove it by hand.\n"
    )


def test_staged_file_keeps_the_old_contents_after_an_error(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def interrupted():
        with staging.staged_file(target) as staged:
            staged.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_others_write_into_the_target_meanwhile_is_kept(tmp_path):
    target = tmp_path / "target"
    target.mkdir()

    def late():
        with staging.staged_folder(target) as staged:
            (staged / "new").write_text("x")
            (target / "precious").write_text("x")

    with pytest.raises(ConversionError, match="not empty"):
        late()
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "precious"]


def test_an_interrupt_once_all_is_in_place_leaves_the_new_contents_and_names_the_old(tmp_path, monkeypatch, capsys):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("x")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with staging.staged_folder(target, overwrite=True) as staged:
        (staged / "new").write_text("x")
        monkeypatch.setattr(staging.shutil, "rmtree", interrupted)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert "could not be removed (interrupted); it holds the old contents" in capsys.readouterr().err


def test_a_mount_point_is_refused_since_nothing_can_take_its_place():
    with pytest.raises(ConversionError, match="Target / is a mount point.* name a folder inside it"):
        staging.require_writable("/")
