"""Plans that fit a card: nnU-Net's planning, with our network and its memory."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_dataset
from commands import NnunetFolders
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin import memory
from nnunet_logvmamba.plugin.plans import planner

OURS, SWIN, SEG = (catalogue.row(name) for name in ("LoGVMambaUNet", "LoGVMambaSwinUNet", "SegMamba"))


@pytest.fixture
def folders(nnunet_folders) -> NnunetFolders:
    """A data set whose fingerprint says that its images are large."""
    small_dataset.write_raw(nnunet_folders.raw, num_cases=2)
    file = nnunet_folders.raw / small_dataset.NAME / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"numTraining": 484}))
    fingerprint([140, 171, 137], nnunet_folders)
    return nnunet_folders


@pytest.fixture(autouse=True, scope="module")
def _every_step_is_counted_once():
    """Several tests plan the same: a step whose network, patch, channels, labels and batch were counted is known."""
    count, counted = planner.LoGVMambaPlanner._step, {}

    def step(self, configuration, channels, batch_size):
        labels = (self.dataset_json["labels"], self.dataset_json.get("regions_class_order"))
        what = json.dumps([configuration, channels, batch_size, labels], default=repr)
        if what not in counted:
            counted[what] = count(self, configuration, channels, batch_size)
        return counted[what]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner.LoGVMambaPlanner, "_step", step)
        yield


def fingerprint(shape: list[int], folders: NnunetFolders, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    values = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0)
    content = {
        "spacings": [spacing] * 2,
        "shapes_after_crop": [shape] * 2,
        "foreground_intensity_properties_per_channel": {"0": values},
        "median_relative_size_after_cropping": 1.0,
    }
    folder = folders.preprocessed / small_dataset.NAME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_fingerprint.json").write_text(json.dumps(content))


def made(gpu_memory: float, network: catalogue.Network = OURS, name: str = "Mine", **knobs) -> planner.LoGVMambaPlanner:
    return planner.plan(small_dataset.NAME, gpu_memory, name, network, knobs, processes=1)


def file_of(folders: NnunetFolders, name: str = "Mine") -> Path:
    return folders.preprocessed / small_dataset.NAME / f"{name}.json"


def voxels(found: planner.LoGVMambaPlanner, name: str = "3d_fullres") -> int:
    depth, height, width = found.configuration(name).patch_size
    return depth * height * width


@pytest.mark.slow
def test_a_larger_card_gets_larger_patches_and_what_is_written_fits_it(folders):
    small, large = made(6, name="Small"), made(14, name="Large")
    assert voxels(large) > voxels(small)
    for found, card in ((small, 6), (large, 14)):
        for name, step in found.memory.items():
            assert step.peak <= memory.budget(card), name
            assert memory.card_for(step.peak) <= card
    assert small.memory["3d_fullres"].peak > 0.5 * memory.budget(6), "nnU-Net shrinks by steps, but not to nothing"
    content = json.loads(file_of(folders, "Large").read_text())
    assert content["plans_name"] == "Large"
    full = PlansManager(content).get_configuration("3d_fullres")
    assert full.network_arch_class_name == OURS.path
    assert full.data_identifier == "nnUNetPlans_3d_fullres"
    assert full.batch_size >= 2


@pytest.mark.slow
def test_all_else_is_what_nnunet_plans(folders, monkeypatch):
    found = made(6)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's planner takes it for a number of threads
    stock = ExperimentPlanner(small_dataset.NAME, 8, plans_name="Stock")
    stock.plan_experiment()
    ours, theirs = (json.loads(file_of(folders, name).read_text()) for name in ("Mine", "Stock"))
    for name, one in theirs["configurations"].items():
        other = ours["configurations"][name]
        own = {"architecture", "batch_size", "patch_size", "data_identifier"}
        assert {k: v for k, v in one.items() if k not in own} == {k: v for k, v in other.items() if k not in own}
    own = {"configurations", "plans_name", "experiment_planner_used"}
    assert {k: v for k, v in ours.items() if k not in own} == {k: v for k, v in theirs.items() if k not in own}
    assert ours["experiment_planner_used"] == "LoGVMambaPlanner"
    assert list(found.memory) == list(ours["configurations"])


@pytest.mark.slow
def test_checkpointing_makes_room_for_larger_patches(folders):
    kept, again = made(6), made(6, name="Again", checkpointing=True)
    assert voxels(again) > voxels(kept)
    assert again.configuration("3d_fullres").network_arch_init_kwargs["checkpointing"] is True


@pytest.mark.slow
def test_what_is_left_over_goes_into_the_batch(folders):
    fingerprint([40, 50, 40], folders)
    found = made(6)
    full = found.configuration("3d_fullres")
    assert list(full.patch_size) == [40, 56, 40]
    most = round(484 * 40 * 50 * 40 * 0.05 / (40 * 56 * 40))
    assert 2 < full.batch_size <= most
    one_more = found._step(full.configuration, 1, full.batch_size + 1).peak
    assert one_more > memory.budget(6) or full.batch_size == most


def test_a_step_is_counted_once(folders, monkeypatch):
    fingerprint([40, 50, 40], folders)
    count, counted = planner.estimate, []

    def estimate(build, manager, *arguments, batch_size, **options):
        counted.append(
            json.dumps([manager.configuration["architecture"], manager.patch_size, batch_size], default=repr)
        )
        return count(build, manager, *arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(planner, "estimate", estimate)
    found = made(12, SWIN, name="Counted")
    assert len(counted) == len(set(counted)) > 1
    chosen = found.configuration("2d")
    assert found.memory["2d"] == found._step(chosen.configuration, 1, chosen.batch_size)
    assert len(counted) == len(set(counted))


@pytest.mark.parametrize(("network", "left"), [(SWIN, ["2d"]), (SEG, ["3d_fullres"])])
def test_a_network_for_some_axes_is_planned_for_those(folders, network, left):
    fingerprint([40, 50, 40], folders)
    found = made(12, network)
    assert list(found.memory) == list(json.loads(file_of(folders).read_text())["configurations"]) == left
    assert found.configuration(left[0]).network_arch_class_name == network.path


def test_configurations_of_another_network_do_not_stay(folders):
    fingerprint([40, 50, 40], folders)
    made(12, SEG)
    content = json.loads(file_of(folders).read_text())
    content["configurations"]["own"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    file_of(folders).write_text(json.dumps(content))
    made(12, SWIN)
    assert list(json.loads(file_of(folders).read_text())["configurations"]) == ["2d", "own"]


def test_a_network_for_volumes_has_no_plans_for_pictures(folders):
    fingerprint([1, 256, 256], folders, (999.0, 1.0, 1.0))
    with pytest.raises(UserError, match="SegMamba is for 3D and this data set is not"):
        made(12, SEG)
    assert not file_of(folders).exists()


@pytest.mark.parametrize(("network", "counted"), [(OURS, 1), (catalogue.row("EoFormer"), 2)])
def test_patches_are_guessed_by_their_voxels_only_where_the_network_does_not_pad_them(
    network, counted, folders, monkeypatch
):
    found = planner.LoGVMambaPlanner(small_dataset.NAME, 8, "Mine", network, {})
    seen = []

    def step(configuration, channels, batch_size):
        seen.append(configuration["patch_size"])
        return SimpleNamespace(weights=0, optimizer=0, peak=2 * found.budget)

    monkeypatch.setattr(found, "_step", step)
    monkeypatch.setattr(found, "_ours", lambda architecture, patch: architecture)
    for patch in ((160, 96, 96), (144, 96, 96)):
        assert found.static_estimate_VRAM_usage(patch, 1, 3, "a.network", {}, []) > found.budget
    assert len(seen) == counted


def test_a_card_that_is_too_small_is_refused_in_a_sentence(folders):
    fingerprint([40, 50, 40], folders)
    with pytest.raises(
        UserError, match="SegMamba does not fit a card of 2 GiB, not even with two patches of .* larger"
    ):
        made(2, SEG)
    assert not file_of(folders).exists()


@pytest.mark.slow
def test_configurations_of_the_user_stay(folders):
    fingerprint([40, 50, 40], folders)
    made(6)
    content = json.loads(file_of(folders).read_text())
    content["configurations"]["own"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    file_of(folders).write_text(json.dumps(content))
    made(8)
    assert json.loads(file_of(folders).read_text())["configurations"]["own"]["batch_size"] == 3


@pytest.mark.slow
def test_the_second_stage_of_a_cascade_is_counted_too(folders):
    fingerprint([300, 512, 512], folders, (1.5, 0.8, 0.8))
    found = made(10)
    assert list(found.memory) == ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    assert found.memory["3d_cascade_fullres"].peak > found.memory["3d_fullres"].peak
    assert found.configuration("3d_lowres").data_identifier == "Mine_3d_lowres"
