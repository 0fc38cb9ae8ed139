"""A model predicts the same however it is asked: threads, backends of the scan, processes, options of nnU-Net."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import NnunetFolders
from small_project import Project, segmentations, voxels

HIPPOCAMPUS = "Dataset004_Hippocampus"
NEW = 2
"""Cases that are left out of the training and predicted."""

LOGITS = """
import sys

import numpy as np
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

model, image, target, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
predictor = nnUNetPredictor(
    use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
)
predictor.initialize_from_trained_model_folder(model, (0,), "checkpoint_final.pth")
values, properties = SimpleITKIO().read_images([image])
planned = predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
data, _, properties = preprocessor.run_case_npy(values, None, properties, *planned)
logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
labels = convert_predicted_logits_to_segmentation_with_correct_shape(
    logits, *planned[:2], predictor.label_manager, properties
)
with torch.inference_mode():
    patch = predictor.network(torch.from_numpy(data)[None, :, :24, :32, :24])
weights, windows = torch.zeros(data.shape[1:], dtype=torch.half), torch.zeros(data.shape[1:])
for window in predictor._internal_get_sliding_window_slicers(data.shape[1:]):
    weights[window[1:]] += compute_gaussian((24, 32, 24), 1 / 8, 10, device=torch.device("cpu"))
    windows[window[1:]] += 1
rounding = windows * 2**-24 / weights.float()
np.savez(target, logits=logits.float().numpy(), labels=labels, patch=patch.numpy(), rounding=rounding.numpy())
"""
WAYS = {
    "one thread": {"threads": 1},
    "numba": {"backend": "numba"},
    "chunked": {"backend": "chunked"},
    "reference": {"backend": "reference"},
    "Triton, interpreted": {"backend": "triton", "TRITON_INTERPRET": "1"},
    "compiled": {"nnUNet_compile": "1"},
}


@pytest.fixture(scope="module")
def hippocampus(shared, tmp_path_factory) -> Project:
    """Real scans, a model trained for some steps, and the scans of ``imagesTs`` that it has not seen."""
    folders = NnunetFolders.below(tmp_path_factory.mktemp("hippocampus") / "nnunet")
    raw = folders.raw / HIPPOCAMPUS
    source = shared / "data" / "hippocampus"
    scans = sorted((source / "imagesTr").iterdir())[:22]
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / name).mkdir(parents=True)
    for index, scan in enumerate(scans):
        name = scan.name.replace(".nii.gz", "_0000.nii.gz")
        shutil.copyfile(scan, raw / ("imagesTs" if index < NEW else "imagesTr") / name)
        if index >= NEW:
            shutil.copyfile(source / "labelsTr" / scan.name, raw / "labelsTr" / scan.name)
    described = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "Anterior": 1, "Posterior": 2}}
    described |= {"numTraining": len(scans) - NEW, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(described))
    project = Project(folders, HIPPOCAMPUS)
    project.plan("3d_fullres")
    project.narrow("3d_fullres")
    project.configure("3d_fullres_narrow", "tiny", "--patch-size", 24, 32, 24, num_iterations_per_epoch=20)
    project.train("tiny")
    return project


@pytest.fixture(scope="module")
def expected(hippocampus, tmp_path_factory) -> Path:
    """What the stock command predicts, one case after the other, mirrored."""
    target = tmp_path_factory.mktemp("expected")
    assert len(hippocampus.predict(images_of(hippocampus), target, "tiny")) == NEW
    return target


def images_of(project: Project) -> Path:
    return project.folders.raw / project.dataset / "imagesTs"


def logits_of(project: Project, target: Path, *, backend: str = "auto", threads: int = 2, **env: str) -> dict:
    model = target / "model"
    shutil.copytree(project.model("tiny"), model)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["tiny"]["architecture"]["arch_kwargs"]["backend"] = backend
    (model / "plans.json").write_text(json.dumps(plans))
    image = min(images_of(project).iterdir())
    project.run("python", "-c", LOGITS, model, image, target / "logits.npz", threads, **env)
    return dict(np.load(target / "logits.npz"))


@pytest.fixture(scope="module")
def plainly(hippocampus, tmp_path_factory) -> dict:
    return logits_of(hippocampus, tmp_path_factory.mktemp("plainly"))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_implementation_gives_the_same_logits_and_labels(way, hippocampus, plainly, tmp_path):
    found = logits_of(hippocampus, tmp_path, **WAYS[way])
    assert found["logits"].shape == plainly["logits"].shape
    assert np.abs(plainly["logits"]).max() > 1
    np.testing.assert_allclose(found["patch"], plainly["patch"], rtol=0, atol=1e-3)
    # nnU-Net adds up the weighted windows in half precision, whose last place is 2**-10 of a number, and 2**-24 of the
    # smallest: towards the corners of an image weights are hardly more.
    allowed = 1e-3 + 2**-9 * np.abs(plainly["logits"]) + plainly["rounding"]
    np.testing.assert_array_less(np.abs(found["logits"] - plainly["logits"]), allowed)
    different = found["labels"] != plainly["labels"]
    if different.any():  # the two best classes must be a tie
        first, second = np.sort(plainly["logits"], axis=0)[[-1, -2]]
        ties = first - second < 2e-3 + 2**-8 * np.abs(first) + 2 * plainly["rounding"]
        assert ties[different.reshape(ties.shape)].all()


@pytest.mark.slow
@pytest.mark.parametrize("options", [("-npp", 2, "-nps", 2), ("-npp", 3, "-nps", 1, "--disable_progress_bar")])
def test_any_number_of_processes_predicts_the_same(options, hippocampus, expected, tmp_path):
    for path in hippocampus.predict(images_of(hippocampus), tmp_path, "tiny", *options):
        assert np.array_equal(voxels(path), voxels(expected / path.name))


@pytest.mark.slow
def test_a_case_alone_and_parts_and_a_continued_prediction_give_the_same(hippocampus, expected, tmp_path):
    images, names = images_of(hippocampus), [path.name for path in segmentations(expected)]
    for part in range(NEW):
        written = hippocampus.predict(images, tmp_path / "parts", "tiny", "-num_parts", NEW, "-part_id", part)
        assert len(written) == part + 1
    continued = tmp_path / "continued"
    continued.mkdir()
    shutil.copy(expected / names[0], continued)
    before = (continued / names[0]).stat().st_mtime_ns
    hippocampus.predict(images, continued, "tiny", "--continue_prediction")
    assert (continued / names[0]).stat().st_mtime_ns == before
    for folder in (tmp_path / "parts", continued):
        assert [path.name for path in segmentations(folder)] == names
        for name in names:
            assert np.array_equal(voxels(folder / name), voxels(expected / name))


@pytest.mark.slow
def test_probabilities_belong_to_the_labels(hippocampus, expected, tmp_path):
    for path in hippocampus.predict(images_of(hippocampus), tmp_path, "tiny", "--save_probabilities"):
        assert np.array_equal(voxels(path), voxels(expected / path.name))
        saved = np.load(tmp_path / path.name.replace(".nii.gz", ".npz"))["probabilities"]
        assert saved.shape == (3, *voxels(path).shape)
        np.testing.assert_allclose(saved.sum(0), 1, atol=1e-3)
        assert np.array_equal(saved.argmax(0), voxels(path))


@pytest.mark.slow
def test_without_mirroring_the_command_predicts_what_the_predictor_does(hippocampus, plainly, tmp_path):
    first, *_ = sorted(hippocampus.predict(images_of(hippocampus), tmp_path, "tiny", "--disable_tta"))
    assert np.array_equal(voxels(first), plainly["labels"])


@pytest.mark.slow
@pytest.mark.parametrize("options", [("-step_size", 1), ("-step_size", 0.3), ("--not_on_device",)])
def test_options_of_the_sliding_window_change_little(options, hippocampus, expected, tmp_path):
    for path in hippocampus.predict(images_of(hippocampus), tmp_path, "tiny", *options):
        found, known = voxels(path), voxels(expected / path.name)
        assert 2 * ((found > 0) & (known > 0)).sum() / ((found > 0).sum() + (known > 0).sum()) > 0.9


@pytest.mark.slow
def test_a_model_of_all_cases_predicts(hippocampus, tmp_path):
    hippocampus.configure("3d_fullres_narrow", "short", num_epochs=1, num_iterations_per_epoch=2)
    hippocampus.train("short", "all")
    assert len(hippocampus.predict(images_of(hippocampus), tmp_path, "short", fold="all")) == NEW


# nnU-Net's own data sets for its integration tests

UPSTREAM = {
    996: "IntegrationTest_Hippocampus_regions_ignore",
    997: "IntegrationTest_Hippocampus_regions",
    998: "IntegrationTest_Hippocampus_ignore",
    999: "IntegrationTest_Hippocampus",
}


@pytest.mark.slow
@pytest.mark.parametrize("number", UPSTREAM)
def test_the_integration_data_sets_of_nnunet_are_trained_and_predicted(number, hippocampus, tmp_path):
    own = hippocampus.copied_to(tmp_path / "nnunet")
    name = f"Dataset{number}_{UPSTREAM[number]}"
    own.run("python", "-m", f"nnunetv2.dataset_conversion.datasets_for_integration_tests.{name}")
    project = Project(own.folders, name)
    project.plan("3d_fullres")
    project.narrow("3d_fullres")
    project.configure("3d_fullres_narrow", "tiny", "--patch-size", 24, 32, 24, num_epochs=2)
    fold = project.train("tiny")
    assert np.isfinite(fold.checkpoint["logging"]["train_losses"]).all()
    labels = {998: {"1"}, 999: {"1", "2"}}.get(number, {"(1, 2)", "1"})  # in 998 label 2 is the one to ignore
    assert set(fold.dice) == labels
    assert (fold.path / "validation" / "surface.json").is_file()
    images = images_of(hippocampus)
    assert len(project.predict(images, tmp_path / "out", "tiny")) == NEW
    assert "ready: 2 case(s)" in project.run("logvmamba", "check", images, fold.path.parent).stdout
