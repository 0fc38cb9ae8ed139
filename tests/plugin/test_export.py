"""Networks as ONNX files: ONNX Runtime gives the logits of torch on real patches, and a mistake gets one sentence."""

from __future__ import annotations

import csv
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from small_model import (
    LABELS,
    REGIONS,
    RGB,
    SWIN_TRAINER,
    TRAINER,
    of_an_earlier_release,
    planned_architecture,
    small_swin_architecture,
    write_model,
)
from torch import nn

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.networks import LoGVMambaSwinUNet, LoGVMambaUNet

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, which is not installed")
pytest.importorskip("onnxscript", reason="needs onnxscript, which is not installed")
onnx = pytest.importorskip("onnx", reason="needs onnx, which is not installed")

TOLERANCE = 1e-3


def network_of(model: Path) -> nn.Module:
    """The network as nnU-Net's predictor loads it."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    return predictor.network.eval()


def preprocessed(model: Path, files: list[Path]) -> np.ndarray:
    """A case as nnU-Net preprocesses it for this model, (channel, slices, rows, columns)."""
    manager = PlansManager(json.loads((model / "plans.json").read_text()))
    configuration = manager.get_configuration("small")
    dataset_json = json.loads((model / "dataset.json").read_text())
    preprocessor = configuration.preprocessor_class(verbose=False)
    return preprocessor.run_case([str(file) for file in files], None, manager, configuration, dataset_json)[0]


def patch_of(image: np.ndarray, size: tuple[int, ...]) -> torch.Tensor:
    """The middle of an image, padded with zeros where it is smaller; 2D patches are slices, as a batch of them."""
    if len(size) == 2:  # slices in a batch
        image = image[:, image.shape[1] // 2 - 1 : image.shape[1] // 2 + 2] if image.shape[1] > 3 else image
        batch = image.swapaxes(0, 1)
    else:
        batch = image[None]
    for axis, wanted in enumerate(size, start=2):
        start = max(0, (batch.shape[axis] - wanted) // 2)
        batch = batch.take(range(start, min(batch.shape[axis], start + wanted)), axis)
        missing = [(0, 0)] * batch.ndim
        missing[axis] = (0, wanted - batch.shape[axis])
        batch = np.pad(batch, missing)
    return torch.from_numpy(np.ascontiguousarray(batch, np.float32))


def assert_same_logits(file: Path, network: nn.Module, images: torch.Tensor) -> None:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.inference_mode():
        expected = network(images)
    assert found.shape == expected.shape
    assert expected.std() > 0.1, "the logits tell nothing"
    assert np.abs(found - expected.numpy()).max() <= TOLERANCE


def export(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["export", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def volume(shared) -> Path:
    return shared / "data" / "hippocampus" / "imagesTr" / "hippocampus_001.nii.gz"


@pytest.fixture(scope="module")
def model_2d(tmp_path_factory) -> Path:
    architecture = planned_architecture(2, stages=2)
    return write_model(tmp_path_factory.mktemp("model"), 2, [32, 32], architecture=architecture, folds=(0, 1))


# Right files


def test_the_command_writes_one_file_that_agrees_with_torch_and_says_what_to_feed(model_2d, volume, tmp_path, capsys):
    file = tmp_path / "model.onnx"
    code, out, err = export(capsys, model_2d, file, "--fold", 0)
    assert (code, err) == (0, "")
    assert "1 channel(s), patch 32 x 32, any batch" in out
    assert "differ by at most" in out
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert_same_logits(file, network_of(model_2d), patch_of(preprocessed(model_2d, [volume]), (32, 32)))
    metadata = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["patch_size"]) == [32, 32]
    assert json.loads(metadata["channel_names"]) == ["MRI"]
    assert json.loads(metadata["normalization_schemes"]) == ["ZScoreNormalization"]
    assert json.loads(metadata["labels"]) == LABELS
    assert json.loads(metadata["spacing"]) == [1.0, 1.0]
    assert json.loads(metadata["mirror_axes"]) == [0, 1]
    assert metadata["trainer"] == TRAINER
    assert metadata["input"].startswith("image: float32 (batch, channel, y, x)")
    assert "softmax" in metadata["output"]
    operations = {node.op_type for node in onnx.load(file).graph.node}
    assert "Div" not in operations or "Exp" in operations  # a scan is in there, not a stub
    assert {node.domain for node in onnx.load(file).graph.node} == {""}


CASES = {
    "3d": ({"dims": 3, "patch_size": [32, 40, 32]}, (24, 32, 24)),
    "3d regions": ({"dims": 3, "patch_size": [32, 40, 32], "labels": REGIONS}, (16, 48, 32)),
    "2d four directions": ({"dims": 2, "patch_size": [32, 48], "trainer": "nnUNetTrainerVMamba"}, (24, 32)),
    "no states": ({"dims": 2, "patch_size": [32, 48], "trainer": "nnUNetTrainerNoSSM"}, (24, 32)),
    "nnU-Net's own network": (
        {"dims": 3, "patch_size": [32, 40, 32], "trainer": "nnUNetTrainerStockNetwork"},
        (24, 32, 24),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_patch_sizes_of_real_mri_give_the_same_logits(case, volume, tmp_path, capsys):
    options, other = CASES[case]
    model = write_model(tmp_path, **options)
    network, image = network_of(model), preprocessed(model, [volume])
    for size in (tuple(options["patch_size"]), other):
        file = tmp_path / "model.onnx"
        code, out, err = export(capsys, model / "fold_0", file, "--overwrite", "--patch-size", *size)
        assert (code, err) == (0, ""), out
        assert_same_logits(file, network, patch_of(image, size))
    metadata = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["patch_size"]) == list(other)
    assert ("sigmoid" in metadata["output"]) == (case == "3d regions")


@pytest.mark.slow
def test_two_patch_sizes_of_real_cells_give_the_same_logits_in_the_swin_lineage(shared, tmp_path, capsys):
    with (shared / "data" / "cells" / "cases.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["modality"] == "histology_rgb"]
    picture = shared / "data" / "cells" / "images" / rows[0]["image"]
    options = {"architecture": small_swin_architecture(), "channels": RGB, "ending": ".png"}
    model = write_model(tmp_path, 2, [64, 96], trainer=SWIN_TRAINER, labels={"background": 0, "a": 1}, **options)
    network, image = network_of(model), preprocessed(model, [picture])
    for size in ((64, 96), (100, 70)):  # 32 divides neither axis of the second
        file = tmp_path / "model.onnx"
        code, out, err = export(capsys, model, file, "--overwrite", "--patch-size", *size)
        assert (code, err) == (0, ""), out
        assert_same_logits(file, network, patch_of(image, size))


# torch.onnx.export without us


def small_unet(dims: int) -> LoGVMambaUNet:
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return LoGVMambaUNet(1, 3, [8, 8, 8], convolution, 3, [1, 2, 2], 2, squeeze=8, backend="chunked").eval()


def small_swin() -> LoGVMambaSwinUNet:
    return LoGVMambaSwinUNet(1, 3, [8, 8, 16], [1, 4, 2], 2, [1, 1], 1).eval()


@pytest.fixture
def quiet_exporter(caplog):
    caplog.set_level(logging.ERROR)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_exporter")
@pytest.mark.parametrize(
    ("make", "size"),
    [(lambda: small_unet(2), (16, 24)), (lambda: small_unet(3), (16, 8, 8)), (small_swin, (32, 24))],
    ids=["2d", "3d", "swin"],
)
def test_plain_export_of_a_module_or_a_program_works_with_a_batch_that_varies(make, size, tmp_path):
    network, images, file = make(), torch.randn(2, 1, *size), tmp_path / "model.onnx"
    torch.onnx.export(network, (images,), file, dynamo=True, verbose=False)
    assert_same_logits(file, network, images)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    scans = [node for node in program.graph.nodes if "selective_scan" in str(node.target)]
    assert len(scans) == sum(
        hasattr(module, "x_proj_weight") * module.directions
        for module in network.modules()
        if hasattr(module, "x_proj_weight")
    )
    torch.onnx.export(program, (), file, dynamo=True, verbose=False)
    for batch in (1, 3):
        assert_same_logits(file, network, torch.randn(batch, 1, *size))


@pytest.mark.usefixtures("quiet_exporter")
def test_a_scan_of_varying_length_is_refused_by_us(tmp_path):
    class Scan(nn.Module):
        def forward(self, u, A, B):
            from nnunet_logvmamba.ops import selective_scan

            return selective_scan(u, u, A, B, B)

    arguments = (torch.randn(1, 9, 4), -torch.rand(4, 2), torch.randn(1, 9, 1, 2))
    length = torch.export.Dim("length", min=2, max=64)
    shapes = ({1: length}, None, {1: length})
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="give the image a fixed size"):
        torch.onnx.export(Scan(), arguments, tmp_path / "x.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False)


# Mistakes


def assert_refused(capsys, *words: object, naming: str) -> None:
    code, out, err = export(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("logvmamba: ")
    assert naming in err


@pytest.fixture
def own_model(model_2d, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(model_2d, tmp_path / "results" / model_2d.name))


def test_a_run_that_is_none_is_refused(tmp_path, model_2d, capsys):
    target = tmp_path / "model.onnx"
    assert_refused(capsys, tmp_path / "nothing", target, naming="nothing is not a folder")
    assert_refused(capsys, tmp_path, target, naming="is no trained model")
    assert_refused(capsys, model_2d.parent, target, naming="is no trained model")
    assert not target.exists()


def test_which_fold_is_meant_must_be_clear(tmp_path, model_2d, capsys):
    target = tmp_path / "model.onnx"
    assert_refused(capsys, model_2d, target, naming="has the folds 0, 1: choose one with --fold")
    assert_refused(capsys, model_2d, target, "--fold", 3, naming="has no fold 3, it has 0, 1")
    assert_refused(capsys, model_2d / "fold_0", target, "--fold", 1, naming="is fold 0 and --fold says 1")


def test_a_training_that_is_not_finished_is_refused_with_what_there_is(own_model, tmp_path, capsys):
    fold = own_model / "fold_0"
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_best.pth")
    assert_refused(capsys, fold, tmp_path / "m.onnx", naming="--checkpoint, there is checkpoint_best.pth")
    (fold / "checkpoint_best.pth").unlink()
    assert_refused(capsys, fold, tmp_path / "m.onnx", naming="train first")


def test_a_target_that_exists_or_has_no_folder_is_refused(model_2d, tmp_path, capsys):
    target = tmp_path / "m.onnx"
    target.write_text("mine")
    assert_refused(capsys, model_2d, target, "--fold", 0, naming="add --overwrite")
    assert target.read_text() == "mine"
    assert_refused(capsys, model_2d, tmp_path / "no" / "m.onnx", naming="there is no folder")
    assert_refused(capsys, model_2d, tmp_path, naming="is a folder: name a file")


def test_weights_of_another_network_are_refused(own_model, tmp_path, capsys):
    file = own_model / "plans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["small"]["architecture"]["arch_kwargs"]["features_per_stage"][0] = 32
    file.write_text(json.dumps(plans))
    assert_refused(capsys, own_model, tmp_path / "m.onnx", "--fold", 0, naming="holds another network than")


class _Payload:
    """Would run when it is unpickled."""

    def __reduce__(self):
        return (print, ("the checkpoint ran code",))


@pytest.mark.parametrize(
    "content",
    [b"not a checkpoint", b"", {"network_weights": {}}, {"x": _Payload()}, [1]],
    ids=["text", "empty", "no weights", "code", "a list"],
)
def test_a_file_that_is_no_checkpoint_is_refused_and_runs_nothing(content, own_model, tmp_path, capsys):
    path = own_model / "fold_0" / "checkpoint_final.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert_refused(capsys, own_model / "fold_0", tmp_path / "m.onnx", naming="checkpoint_final.pth")


def test_a_trainer_that_is_not_installed_is_named(own_model, tmp_path, capsys):
    path = own_model / "fold_0" / "checkpoint_final.pth"
    from nnunet_logvmamba.plugin.checkpoints import read_checkpoint

    torch.save({**read_checkpoint(own_model / "fold_1" / path.name), "trainer_name": "nnUNetTrainerNobodyHas"}, path)
    assert_refused(capsys, own_model / "fold_0", tmp_path / "m.onnx", naming="trained by nnUNetTrainerNobodyHas")


def test_a_trainer_with_the_arguments_of_an_earlier_nnunet_is_built_as_it_predicts(own_model, monkeypatch):
    from nnunet_logvmamba.plugin import export as exporting
    from nnunet_logvmamba.plugin import trainers
    from nnunet_logvmamba.plugin.plans import to_our_architecture

    earlier = of_an_earlier_release(trainers.nnUNetTrainerLoGVMamba)
    monkeypatch.setattr(exporting, "find_trainer", lambda name: earlier)
    file = own_model / "plans.json"
    content = json.loads(file.read_text())
    for configuration in content["configurations"].values():
        configuration["architecture"] = to_our_architecture(configuration["architecture"], configuration["patch_size"])
    file.write_text(json.dumps(content))
    assert isinstance(exporting.read_network(own_model / "fold_0").network, LoGVMambaUNet)


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ([31, 32], "must be divisible by"),
        ([32], "has 1 axes"),
        ([32, 32, 32], "has 3 axes"),
    ],
    ids=str,
)
def test_a_patch_that_does_not_fit_is_refused(size, why, model_2d, tmp_path, capsys):
    words = (model_2d / "fold_0", tmp_path / "m.onnx", "--patch-size", *size)
    assert_refused(capsys, *words, naming=f"the patch size {size} {why}")


def test_missing_packages_are_named_with_the_command_that_installs_them(model_2d, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    words = (model_2d / "fold_0", tmp_path / "m.onnx")
    assert_refused(capsys, *words, naming="run python -m pip install onnx onnxscript onnxruntime")
