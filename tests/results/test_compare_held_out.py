"""``logvmamba compare`` on predictions of cases that were in no fold, scored by ``logvmamba evaluate``."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from small_results import LABELS, SPACING, write_run

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.results import comparison, predicted, tables

LOG, VSS = "nnUNetTrainerLoGVMamba", "nnUNetTrainerVMamba"
CASES = 7


def write_map(file: Path, shift: int) -> None:
    """Two neighbouring boxes, moved along an axis."""
    values = np.zeros((12, 12, 24), np.uint8)
    values[3:9, 3:9, 4 + shift : 10 + shift] = 1
    values[3:9, 3:9, 10 + shift : 16 + shift] = 2
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(values), file)


@pytest.fixture
def references(tmp_path) -> Path:
    folder = tmp_path / "references"
    for case in range(CASES):
        write_map(folder / f"case_{case}.nii.gz", 0)
    return folder


def predict(out: Path, trainer: str, references: Path, shifts: dict[int, int], *folds: str, **said: object) -> Path:
    """What ``logvmamba run --predict --references`` leaves where a model's boxes are shifted in some cases."""
    for case in range(CASES):
        write_map(out / f"case_{case}.nii.gz", shifts.get(case, 0))
    content = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "MRI"}}
    (out / "dataset.json").write_text(json.dumps(content))
    (out / "plans.json").write_text(json.dumps({"original_median_spacing_after_transp": SPACING}))
    content = {"model": f"{trainer}__nnUNetPlans__3d_fullres", "dataset": "Dataset004_Hippocampus", "finished": True}
    (out / predicted.PREDICTED_BY).write_text(json.dumps({**content, "folds": list(folds or ("0",)), **said}))
    score(out, references)
    return out


def score(out: Path, references: Path, *options: str) -> None:
    words = ["evaluate", out, references, "--predicted-only", "--output", out / predicted.SCORES, "--overwrite"]
    assert main([*map(str, words), *options]) == 0
    digests = {path.name: str(hash(path.read_bytes())) for path in references.iterdir()}
    (out / predicted.SCORED_AGAINST).write_text(json.dumps(digests))


def refused(*paths: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        comparison.compare(paths, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_held_out_cases_are_compared_as_validations_are(tmp_path, references, capsys):
    every = dict.fromkeys(range(CASES), 1)
    record = {"format": 1, "parameters": 5_000_000}
    for seed, moved in ((1, {0: 1}), (2, {1: 1})):
        predict(tmp_path / "log" / f"seed{seed}", f"{LOG}_seed{seed}", references, moved, **{"logvmamba.json": record})
        predict(tmp_path / "vss" / f"seed{seed}", f"{VSS}_seed{seed}", references, every | {seed: 2})
    found = comparison.compare([tmp_path / "log", tmp_path / "vss"])
    assert [method.name for method in found.methods] == ["LoGVMamba", "VMamba"]
    assert [len(method.runs) for method in found.methods] == [2, 2]
    assert (found.held_out, found.folds, found.num_cases) == (True, ("0",), CASES)
    assert found.metrics == ("dice", "nsd", "hd95")
    # A box of 6 that is moved by s of its voxels has the Dice 1 - s / 6, in each label.
    score_of = {name: labels[comparison.AVERAGE].mean for name, labels in found.scores["dice"].items()}
    assert score_of == pytest.approx({"LoGVMamba": 1 - 1 / 6 / CASES, "VMamba": 1 - (CASES + 1) / 6 / CASES})
    pair = next(pair for pair in found.pairs if (pair.metric, pair.label) == ("dice", comparison.AVERAGE))
    assert (pair.test.wins, pair.test.losses, pair.test.cases) == (CASES, 0, CASES)
    assert found.settings["surface"]["policy"] == "nnunet"
    assert [method.costs["parameters"] for method in found.methods] == [5_000_000, None]
    text = tables.as_markdown(found)
    assert f"{CASES} held-out cases, predicted with fold 0; runs: LoGVMamba 2, VMamba 2." in text
    assert main(["compare", str(tmp_path / "log"), str(tmp_path / "vss"), "--output", str(tmp_path / "tables")]) == 0
    assert "Dice: LoGVMamba has the best average" in capsys.readouterr().out
    assert (tmp_path / "tables" / "comparison.md").read_text() == text


def test_models_of_all_folds_together_are_one_run_and_fold_all_was_trained_on_none_of_these_cases(tmp_path, references):
    one = predict(tmp_path / "one", LOG, references, {}, "0", "1", "2")
    two = predict(tmp_path / "two", VSS, references, {0: 1}, "0", "1", "2")
    found = comparison.compare([one, two])
    assert (found.folds, len(found.methods[0].runs)) == (("0", "1", "2"), 1)
    assert "held-out cases, predicted with folds 0, 1, 2" in tables.as_markdown(found)
    both = [predict(tmp_path / name, name, references, {}, "all") for name in ("LoG", "VSS")]
    assert not any("trained on" in note for note in comparison.compare(both).notes)


def test_predictions_inside_a_folder_of_results_do_not_take_its_trainings_away(tmp_path, references):
    for trainer, dice in ((LOG, 0.9), (VSS, 0.8)):
        cases = {f"case_{number}": [dice, dice] for number in range(3)}
        fold = write_run(tmp_path, f"{trainer}__nnUNetPlans__3d_fullres", 0, cases)
    predict(fold.parent.parent / "preds", LOG, references, {})
    found = comparison.compare([fold.parent.parent])
    assert (found.held_out, len(found.methods)) == (False, 2)


def test_what_cannot_be_compared_is_refused(tmp_path, references):
    one = predict(tmp_path / "one", LOG, references, {})
    two = predict(tmp_path / "two", VSS, references, {})
    assert len(comparison.compare([one, two]).methods) == 2
    assert "there is only one method" in refused(one)
    other = predict(tmp_path / "other", VSS, references, {}, "0", "1")
    assert f"{one} and {other} are predicted with folds 0 and with 0, 1: predict both" in refused(one, other)
    trained = tmp_path / f"{LOG}__nnUNetPlans__3d_fullres"
    (trained / "fold_0").mkdir(parents=True)
    assert f"{one} holds predictions and {trained} none" in refused(one, trained)
    assert "--folds chooses among trainings" in refused(one, two, folds=["0"])
    score(two, references, "--tolerance", "5")
    assert "surface metrics of another tolerance" in refused(one, two)
    assert len(comparison.compare([one, two], metrics=["Dice"]).methods) == 2
    assert "there is no metric 'F1'" in refused(one, two, metrics=["F1"])
    corrected = tmp_path / "corrected"
    shutil.copytree(references, corrected)
    write_map(corrected / "case_3.nii.gz", 1)
    score(two, corrected)
    assert "were scored against other references, case_3.nii.gz is the first" in refused(one, two)
    (two / "case_6.nii.gz").unlink()
    score(two, references)
    assert f"are predictions of other cases: case_6 is only in {one} (1 such cases)" in refused(one, two)


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        (predicted.SCORED_AGAINST, "is not scored: give the command that predicted again, with --references"),
        ("scores/scores.json", "is not scored: give the command that predicted again, with --references"),
        ("scores/scores.csv", "scores.csv cannot be read"),
        ("plans.json", "plans.json does not exist: copy the whole folder of predictions"),
        ("dataset.json", "dataset.json does not exist"),
    ],
)
def test_what_predictions_lack_is_named(lacks, words, tmp_path, references):
    one = predict(tmp_path / "one", LOG, references, {})
    two = predict(tmp_path / "two", VSS, references, {})
    (two / lacks).unlink()
    assert words in refused(one, two)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"finished": False}, "is not predicted to its end: give the command that began it again"),
        ({"model": "mine"}, "predicted_by.json is not what logvmamba writes"),
        ({"folds": 3}, "predicted_by.json is not what logvmamba writes"),
    ],
)
def test_a_record_that_says_too_little_is_named(said, words, tmp_path, references):
    one = predict(tmp_path / "one", LOG, references, {})
    two = predict(tmp_path / "two", VSS, references, {}, **said)
    assert words in refused(one, two)
