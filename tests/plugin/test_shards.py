"""Prediction in shards: how many there may be, and which models can be predicted with so."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import small_dataset
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import move_into
from nnunet_logvmamba.plugin import first_run
from nnunet_logvmamba.plugin.shards import Shards


class Predicting(Shards):
    """Writes the scans' label maps as nnU-Net would, and nothing for a shard without cases."""

    def step(self, shard):
        labels, folder = self.images.with_name("labelsTr"), self.staged / str(shard)
        code = f"""
import shutil
from collections.abc import Iterable
from pathlib import Path
folder = Path({str(folder)!r})
folder.mkdir(exist_ok=True)
(folder / "plans.json").write_text("{{}}")
for case in {self.cases[shard :: self.number]!r}:
    shutil.copy(Path({str(labels)!r}) / f"{{case}}.nii.gz", folder)
"""
        return first_run.Step(super().step(shard).title, (sys.executable, "-c", code))


@pytest.fixture
def model(nnunet_folders) -> Path:
    """A model as far as shards look at it; the scans are in ``nnUNet_raw``."""
    small_dataset.write_raw(nnunet_folders.raw)
    folder = nnunet_folders.results / small_dataset.NAME / "nnUNetTrainerNoSSM__nnUNetPlans__2d"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"weights")
    dataset_json = nnunet_folders.raw / small_dataset.NAME / "dataset.json"
    (folder / "dataset.json").write_text(dataset_json.read_text())
    return folder


def test_more_shards_than_scans_are_gathered(model, nnunet_folders, tmp_path):
    images = nnunet_folders.raw / small_dataset.NAME / "imagesTr"
    shards = Predicting(model, images, tmp_path / "out", ("0",), 8, "cpu")
    shards.begin()
    assert shards.due() == [0, 1, 2, 3, 4]
    for shard in range(8):
        shards.predict(shard)
    shards.gather()
    assert shards.is_done
    expected = [*(f"ball_{case}.nii.gz" for case in range(5)), "plans.json", first_run.PREDICTED_BY]
    assert sorted(path.name for path in shards.out.iterdir()) == expected


@pytest.mark.parametrize("predicted", [False, True])
def test_a_mask_that_somebody_put_there_meanwhile_is_neither_replaced_nor_taken(
    predicted, model, nnunet_folders, tmp_path
):
    images = nnunet_folders.raw / small_dataset.NAME / "imagesTr"
    shards = Predicting(model, images, tmp_path / "out", ("0",), 2, "cpu")
    shards.begin()
    if predicted:
        for shard in range(2):
            shards.predict(shard)
    by_hand = shards.out / "ball_2.nii.gz"
    shutil.copy(images.with_name("labelsTr") / "ball_0.nii.gz", by_hand)
    content = by_hand.read_bytes()
    with pytest.raises(UserError, match=f"{by_hand} is not known to be predicted here and stays: move"):
        shards.gather()
    assert by_hand.read_bytes() == content
    assert [path.name for path in shards.out.iterdir() if path.is_file()] == [by_hand.name]
    by_hand.unlink()
    shards.gather()
    assert by_hand.read_bytes() == (images.with_name("labelsTr") / by_hand.name).read_bytes()
    assert shards.is_done


def test_a_gathering_that_was_killed_goes_on_after_the_jobs_begin_again(model, nnunet_folders, tmp_path, monkeypatch):
    images = nnunet_folders.raw / small_dataset.NAME / "imagesTr"
    shards = Predicting(model, images, tmp_path / "out", ("0",), 2, "cpu")
    shards.begin(["17"])
    for shard in range(2):
        shards.predict(shard)

    def killed(folder: Path, files: Iterable[Path]) -> None:
        move_into(folder, list(files)[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunet_logvmamba.plugin.shards.move_into", killed)
    with pytest.raises(KeyboardInterrupt):
        shards.gather()
    monkeypatch.undo()
    assert len(list(shards.out.glob("*.nii.gz"))) == 2
    assert shards.jobs_begun == ["17"]
    shards.begin(["18"])
    assert shards.due() == []
    shards.gather()
    assert len(list(shards.out.glob("*.nii.gz"))) == 5


def test_a_gathering_that_was_killed_at_its_end_finds_everything_done(model, nnunet_folders, tmp_path, monkeypatch):
    images = nnunet_folders.raw / small_dataset.NAME / "imagesTr"
    shards = Predicting(model, images, tmp_path / "out", ("0",), 2, "cpu")
    shards.begin()

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        shards.gather()
    monkeypatch.undo()
    monkeypatch.setattr(Predicting, "predict", lambda *_, **__: pytest.fail("it was predicted"))
    shards.gather()
    assert not shards.staged.exists()
    assert len(list(shards.out.glob("*.nii.gz"))) == 5


def test_spacings_beside_tiff_volumes_stay_with_them(nnunet_folders, tmp_path):
    dataset = nnunet_folders.raw / small_dataset.NAME
    (dataset / "imagesTr").mkdir(parents=True)
    model = nnunet_folders.results / small_dataset.NAME / "nnUNetTrainerNoSSM__nnUNetPlans__2d"
    (model / "fold_0").mkdir(parents=True)
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"weights")
    content = {"channel_names": {"0": "MR"}, "labels": small_dataset.LABELS, "file_ending": ".tif"}
    (model / "dataset.json").write_text(json.dumps(content))
    for case in "abc":
        (dataset / "imagesTr" / f"{case}_0000.tif").write_bytes(case.encode())
    shards = Shards(model, dataset / "imagesTr", tmp_path / "out", ("0",), 2, "cpu")
    shards.begin()
    for shard, cases in enumerate(("ac", "b")):
        (shards.staged / str(shard)).mkdir()
        for case in cases:
            properties = {"spacing": (3.0, 1.0, 1.0)}
            target = shards.staged / str(shard) / f"{case}.tif"
            Tiff3DIO().write_seg(np.ones((4, 5, 6), np.uint8), str(target), properties)
    shards.gather()
    for case in "abc":
        assert json.loads((shards.out / f"{case}.json").read_text()) == {"spacing": [3.0, 1.0, 1.0]}


@pytest.mark.parametrize("inherited", [False, True])
def test_the_second_stage_of_a_cascade_is_refused(inherited, model, nnunet_folders, tmp_path):
    cascade = model.rename(model.with_name("nnUNetTrainerNoSSM__nnUNetPlans__cascade"))
    first = {"architecture": {"network_class_name": "a.network"}}
    second = {**first, "previous_stage": "3d_lowres"}
    configurations = {"cascade": {"inherits_from": "base"}, "base": second} if inherited else {"cascade": second}
    plans = {"image_reader_writer": "SimpleITKIO", "configurations": configurations}
    (cascade / "plans.json").write_text(json.dumps(plans))
    images = nnunet_folders.raw / small_dataset.NAME / "imagesTr"
    with pytest.raises(UserError, match="second stage of a cascade, .* predict with 3d_lowres, then with nnUNetv2_pre"):
        Shards(cascade, images, tmp_path / "out", ("0",), 2, "cpu").check()
    configurations["cascade"] = first
    (cascade / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match=r"checkpoint_final\.pth"):  # damaged, which is looked at later
        Shards(cascade, images, tmp_path / "out", ("0",), 2, "cpu").check()
