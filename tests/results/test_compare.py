"""``logvmamba compare``: numbers worked out by hand, what it refuses, and real trainings."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from scipy import stats
from small_results import DATASET, write_run

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.cli.compare import OWN
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.results import comparison, tables
from nnunet_logvmamba.results.runs import find_folds, read_fold
from nnunet_logvmamba.results.statistics import holm

LOG, VSS, STOCK = "nnUNetTrainerLoGVMamba", "nnUNetTrainerVMamba", "nnUNetTrainer"
NAN, INF = float("nan"), float("inf")


def model(trainer: str, configuration: str = "3d_fullres", plans: str = "nnUNetPlans") -> str:
    return f"{trainer}__{plans}__{configuration}"


def scores(seed: int, mean: float, cases: int = 20, prefix: str = "hippocampus") -> dict[str, list[float]]:
    values = np.random.default_rng(seed).normal(mean, 0.02, (cases, 2)).clip(0, 1).round(3)
    return {f"{prefix}_{case:03d}": row.tolist() for case, row in enumerate(values)}


def refusal(*words: object) -> str:
    """What the command says when it refuses, after making sure that it is one sentence with exit code 2."""
    done = run_command(["logvmamba", "compare", *words], check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


def refused(*paths: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        comparison.compare(paths, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def results(tmp_path) -> Path:
    return tmp_path / "results"


# Numbers by hand


def test_the_standard_error_runs_over_folds_whose_seeds_share_their_cases(results):
    # Run means: 0.80, 0.84 | 0.82, 0.90; the average of two labels is taken within a run.
    for (seed, fold), value in {(1, 0): 0.80, (1, 1): 0.84, (2, 0): 0.82, (2, 1): 0.90}.items():
        dice = {f"case_{fold}_{k}": [value - 0.1, value + 0.1] for k in range(3)}
        write_run(results, model(f"{LOG}_seed{seed}"), fold, dice)
        write_run(results, model(f"{VSS}_seed{seed}"), fold, {case: [0.5, 0.5] for case in dice})
    found = comparison.compare([results])
    assert [method.name for method in found.methods] == ["LoGVMamba", "VMamba"]
    assert [run.seed for run in found.methods[0].runs] == [1, 1, 2, 2]
    score = found.scores["dice"]["LoGVMamba"]["average"]
    assert score.mean == pytest.approx(0.84)
    assert score.error == pytest.approx(np.std([0.81, 0.87], ddof=1) / sqrt(2))
    assert (score.runs, score.scored, score.left_out) == (4, 24, 0)
    assert found.scores["dice"]["LoGVMamba"]["Anterior"].mean == pytest.approx(0.74)
    assert found.scores["dice"]["LoGVMamba"]["Posterior"].mean == pytest.approx(0.94)
    assert (found.folds, found.num_cases) == (("0", "1"), 6)


def test_one_fold_has_the_standard_error_of_its_seeds(results):
    for seed, value in enumerate((0.80, 0.84, 0.88), start=1):
        write_run(results, model(f"{LOG}_seed{seed}"), 0, {"a": [value, value]})
        write_run(results, model(f"{VSS}_seed{seed}"), 0, {"a": [0.5, 0.5]})
    score = comparison.compare([results]).scores["dice"]["LoGVMamba"]["average"]
    assert (score.mean, score.error) == (pytest.approx(0.84), pytest.approx(0.04 / sqrt(3)))


def test_fold_all_is_never_mixed_with_others(results):
    for trainer, level in ((LOG, 0.8), (VSS, 0.85)):
        for fold in (0, 1):
            write_run(results, model(trainer), fold, scores(fold, level, prefix=f"fold{fold}"))
    before = comparison.compare([results])
    for trainer, level in ((LOG, 0.99), (VSS, 0.9)):
        everything = {
            case: values for fold in (0, 1) for case, values in scores(fold, level, prefix=f"fold{fold}").items()
        }
        write_run(results, model(trainer), "all", everything)
    found = comparison.compare([results])
    assert (found.scores, found.pairs, found.folds) == (before.scores, before.pairs, ("0", "1"))
    assert "Left out: fold all, which is validated on the cases that it was trained on." in found.notes
    assert "give --folds all, or leave it out" in refused(results, folds=["0", "all"])
    assert comparison.compare([results], folds=["all"]).folds == ("all",)


def test_a_case_that_several_folds_are_validated_on_counts_once(results):
    for trainer, better in ((LOG, 0.0), (VSS, 0.01)):
        for fold in range(3):
            dice = {f"case_{k}": [0.8 + better + 0.01 * k] * 2 for k in range(4)}
            write_run(results, model(trainer), fold, dice)
    found = comparison.compare([results])
    (pair,) = (pair for pair in found.pairs if (pair.metric, pair.label) == ("dice", "average"))
    assert (found.num_cases, pair.test.cases) == (4, 4)
    assert pair.test.p == pytest.approx(0.125)


def test_trainings_of_one_method_that_were_not_alike_are_told(results):
    for seed, (epochs, version) in enumerate(((10, "0.1"), (1000, "0.2")), start=1):
        record = {
            "epochs": epochs,
            "epochs_done": epochs,
            "iterations_per_epoch": 25,
            "versions": {"nnunet_logvmamba": version},
        }
        for trainer in (LOG, VSS):
            write_run(results, model(f"{trainer}_seed{seed}"), 0, {"a": [0.8, 0.8]}, record=record)
    notes = " ".join(comparison.compare([results]).notes)
    assert "Not trained alike, iterations: LoGVMamba 250, 25000; VMamba 250, 25000." in notes
    assert "Not trained alike, nnunet_logvmamba: LoGVMamba 0.1, 0.2; VMamba 0.1, 0.2." in notes


def test_pairs_are_tested_case_by_case_with_seeds_averaged(results):
    data = {name: scores(seed, 0.85) for seed, name in enumerate([f"{LOG}_seed1", f"{LOG}_seed2", STOCK])}
    for trainer, dice in data.items():
        write_run(results, model(trainer), 0, dice)
    found = comparison.compare([results])
    arrays = {name: np.array(list(dice.values())) for name, dice in data.items()}
    first = (arrays[f"{LOG}_seed1"] + arrays[f"{LOG}_seed2"]) / 2
    differences = {"average": (first - arrays[STOCK]).mean(axis=1), "Anterior": (first - arrays[STOCK])[:, 0]}
    for label, d in differences.items():
        (pair,) = [p for p in found.pairs if (p.metric, p.label) == ("dice", label)]
        assert (pair.first, pair.second) == ("LoGVMamba", "nnUNetTrainer")
        assert pair.test.difference == pytest.approx(d.mean())
        assert pair.test.p == pytest.approx(stats.wilcoxon(d.round(9)).pvalue)
        assert (pair.test.wins, pair.test.losses) == ((d > 1e-6).sum(), (d < -1e-6).sum())


def test_holm_counts_the_pairs_of_the_average_and_those_of_all_classes_apart(results):
    for seed, trainer in enumerate([LOG, VSS, STOCK]):
        write_run(results, model(trainer), 0, scores(seed, 0.80 + 0.01 * seed))
    found = comparison.compare([results])
    for members in (["average"], ["Anterior", "Posterior"]):
        pairs = [pair for pair in found.pairs if pair.label in members]
        assert len(pairs) == 3 * len(members)
        assert [pair.p_holm for pair in pairs] == pytest.approx(holm([pair.test.p for pair in pairs]))
    only = comparison.compare([results], against="VMamba")
    assert {frozenset((pair.first, pair.second)) for pair in only.pairs} == {
        frozenset(("LoGVMamba", "VMamba")),
        frozenset(("nnUNetTrainer", "VMamba")),
    }
    assert "LoGVMamba" in comparison.indistinguishable(only, "dice", "average", "nnUNetTrainer"), "it was not tested"


@pytest.mark.parametrize(
    "labels",
    [
        {"background": "0", "Anterior": "1", "Posterior": "2"},
        {"background": 0.0, "Anterior": 1.0, "Posterior": 2.0},
        {"background": 0, "Anterior": ["1", "2"], "Posterior": " 2"},
        {"background": 0, "Anterior": [1.0, 2.0], "Posterior": [2.0]},
    ],
)
def test_labels_have_their_names_however_their_numbers_are_written(labels, results):
    for trainer in (LOG, VSS):
        write_run(results, model(trainer), 0, {"a": [0.9, 0.8]}, labels=labels, surface={"a": [{"NSD": 0.7}] * 2})
    found = comparison.compare([results])
    assert found.labels == dict.fromkeys(("dice", "nsd"), ("Anterior", "Posterior"))
    assert found.scores["dice"]["LoGVMamba"]["Anterior"].mean == pytest.approx(0.9)


@pytest.mark.parametrize("labels", [{"background": 0, "Anterior": 1.5}, {"background": 0, "Anterior": "one"}])
def test_the_remedy_for_labels_that_are_no_numbers_can_help(labels, results):
    fold = write_run(results, model(LOG), 0, {"a": [0.9]}, labels=labels)
    sentence = refused(results)
    assert f"{fold.parent / 'dataset.json'}: the label 'Anterior' must be a whole number or a list of them" in sentence
    assert sentence.endswith(f"not {labels['Anterior']!r}: correct it there")


def test_cases_without_a_mask_are_left_out_and_counted(results):
    write_run(results, model(LOG), 0, {"a": [0.8, NAN], "b": [0.6, 0.9], "c": [NAN, NAN]})
    write_run(results, model(VSS), 0, {"a": [0.7, NAN], "b": [0.6, 0.8], "c": [NAN, NAN]})
    found = comparison.compare([results])
    log = found.scores["dice"]["LoGVMamba"]
    assert (log["Anterior"].mean, log["Anterior"].left_out) == (pytest.approx(0.7), 1)
    assert (log["Posterior"].mean, log["Posterior"].scored) == (pytest.approx(0.9), 1)
    assert log["average"].mean == pytest.approx(0.8)
    (pair,) = [pair for pair in found.pairs if pair.label == "average"]
    assert pair.test.cases == 2
    assert pair.test.difference == pytest.approx((0.1 + 0.05) / 2)
    assert any("left out of the means: LoGVMamba 3, VMamba 3" in note for note in found.notes)


def test_surface_metrics_come_from_surface_json_and_lower_distances_win(results):
    cases = [f"case_{k}" for k in range(8)]
    for trainer, distance in ((LOG, 1.5), (VSS, 4.0)):
        tables_of = {
            case: [{"HD95": distance + k / 10, "NSD": 0.9}, {"HD95": 2.0, "NSD": 0.8}] for k, case in enumerate(cases)
        }
        tables_of["case_0"][1] = {"HD95": INF, "NSD": 0.0}
        tables_of["case_1"][1] = {"HD95": None, "NSD": None}
        write_run(results, model(trainer), 0, {case: [0.9, 0.8] for case in cases}, surface=tables_of)
    found = comparison.compare([results])
    assert found.metrics == ("dice", "nsd", "hd95")
    assert found.settings == {"surface": {"policy": "nnunet", "tolerance": 2.0, "unit": "mm"}}
    log = found.scores["hd95"]["LoGVMamba"]
    assert log["Anterior"].mean == pytest.approx(1.85)
    assert (log["Posterior"].mean, log["Posterior"].left_out) == (pytest.approx(2.0), 2)
    (pair,) = [pair for pair in found.pairs if (pair.metric, pair.label) == ("hd95", "Anterior")]
    assert (pair.test.wins, pair.test.losses) == (8, 0)
    assert pair.test.difference == pytest.approx(-2.5)
    assert "**1.93" in tables.as_markdown(found)
    assert "LoGVMamba has the best average" in comparison.conclusion(found, "hd95")


def test_surface_metrics_are_also_read_from_rows(results):
    tolerance = {"value": 2.0, "unit": "mm"}
    for trainer in (LOG, VSS):
        fold = write_run(results, model(trainer), 0, {"a": [0.9, 0.8]})
        rows = [
            {"case": "a", "label": label, "hd95": 3.0, "nsd": None, "dice": 0.1} for label in ("Anterior", "Posterior")
        ]
        settings = {
            "policy": {"name": "nnunet", "source": "x"},
            "unit": "mm",
            "hd95": "joined",
            "spacing": "of each file",
        }
        tolerances = {row["label"]: {**tolerance, "source": f"of {trainer}"} for row in rows}
        content = {**settings, "tolerances": tolerances, "mean": {}, "scores": rows}
        (fold / "validation" / "surface.json").write_text(json.dumps(content))
    found = comparison.compare([results])
    assert found.settings["surface"] == {
        "policy": "nnunet",
        "unit": "mm",
        "hd95": "joined",
        "spacing": "of each file",
        "tolerances": 2.0,
    }
    assert found.scores["hd95"]["VMamba"]["Posterior"].mean == 3.0
    assert found.scores["nsd"]["VMamba"]["Posterior"].left_out == 1
    assert found.scores["dice"]["VMamba"]["Posterior"].mean == pytest.approx(0.8), "Dice stays nnU-Net's"


def test_surface_metrics_that_only_some_runs_have_are_left_out_and_named(results):
    dice = {"a": [0.9, 0.8]}
    write_run(results, model(LOG), 0, dice, surface={"a": [{"HD95": 1.0}, {"HD95": 1.0}]})
    write_run(results, model(VSS), 0, dice)
    found = comparison.compare([results])
    assert found.metrics == ("dice",)
    assert f"HD95 is left out, because {model(VSS)}/fold_0 has none (1 such runs)." in found.notes
    assert f"{model(VSS)}/fold_0 has no HD95" in refused(results, metrics=["HD95"])


CELLS = {"background": 0, "interior": 1, "boundary": 2}


def cells(results: Path, trainer: str, f1: dict[str, float | None], fold: int = 0, **options) -> Path:
    """A fold whose images have these F1; object IoU follows from it, as it does from the same counts."""
    instances = {
        case: {"f1": value, "object_iou": value and value / (2 - value), "average_precision": value and value / 4}
        for case, value in f1.items()
    }
    dice = {case: [0.9, 0.5] for case in f1}
    return write_run(results, model(trainer, "2d"), fold, dice, labels=CELLS, instances=instances, **options)


def test_scores_of_instances_are_compared_as_one_class(results):
    f1 = {f"cell_{k}": 0.6 + k / 100 for k in range(8)}
    for seed in (1, 2):
        cells(results, f"{LOG}_seed{seed}", {case: value + 0.1 + seed / 1000 for case, value in f1.items()})
        cells(results, f"{VSS}_seed{seed}", {case: value + seed / 1000 for case, value in f1.items()})
    found = comparison.compare([results])
    assert found.metrics == ("dice", "f1", "object_iou")
    assert found.labels == {
        "dice": ("interior", "boundary"),
        "f1": ("instances",),
        "object_iou": ("instances",),
    }
    # 0.60, 0.61, ... 0.67 with 0.001 and 0.002 more: the means of the two seeds are 0.636 and 0.637.
    score = found.scores["f1"]["VMamba"]["average"]
    assert (score.mean, score.error) == (pytest.approx(0.6365), pytest.approx(0.0005))
    assert (score.runs, score.scored, score.left_out) == (2, 16, 0)
    (pair,) = [pair for pair in found.pairs if (pair.metric, pair.label) == ("f1", "average")]
    assert (pair.test.difference, pair.test.wins) == (pytest.approx(0.1), 8)
    assert (pair.test.p, pair.p_holm) == (2 / 2**8, 2 / 2**8), "one pair, so nothing to correct"
    assert comparison.conclusion(found, "f1") == (
        "F1: LoGVMamba has the best average; it is beyond noise better than VMamba."
    )
    page = tables.as_markdown(found)
    assert re.findall("^## (.*)$", page, re.MULTILINE) == [
        "Average over classes",
        "Dice per class ↑",
        "Dice, average over classes: pairs",
        "F1: pairs",
        "object_iou: pairs",
        "To be kept in mind",
    ]
    assert "| method | Dice ↑ | F1 ↑ | object_iou ↑ |" in page
    assert "| **0.7365 ± 0.0005** |" in page
    assert "Instance metrics: grow_px 2, iou 0.5, tile_px none, watershed no." in page
    assert r"object\_iou: pairs" in tables.as_latex(found)
    rows = list(csv.DictReader(tables.as_csv(found)["means.csv"].splitlines()))
    assert {row["class"] for row in rows if row["metric"] == "F1"} == {"instances", "average"}


def test_instances_alone_have_no_classes_to_average(results):
    for trainer, value in ((LOG, 0.8), (VSS, 0.6)):
        cells(results, trainer, {"a": value, "b": value})
    page = run_command(["logvmamba", "compare", results, "--metrics", "F1", "object_iou", "average_precision"]).stdout
    assert "## Average over cases" in page
    assert "over classes" not in page.split("Each value is")[0]
    assert "| LoGVMamba | **0.8000** | **0.6667** | **0.2000** |" in page
    found = comparison.compare([results], metrics=["Dice"])
    assert found.settings == {}


def test_an_image_without_cells_is_left_out_and_counted(results):
    for trainer, value in ((LOG, 0.8), (VSS, 0.6)):
        cells(results, trainer, {"a": value, "b": value, "empty": None})
    found = comparison.compare([results])
    score = found.scores["f1"]["LoGVMamba"]["average"]
    assert (score.mean, score.scored, score.left_out) == (pytest.approx(0.8), 2, 1)
    assert "F1: values that do not exist (no cell, true or predicted) are left out of the means: LoGVMamba 1, " in (
        "\n".join(found.notes)
    )
    assert "| **0.8000 (2 of 3)** |" in tables.as_markdown(found)


def test_instances_that_only_some_runs_have_are_left_out_and_named(results):
    cells(results, LOG, {"a": 0.8})
    write_run(results, model(VSS, "2d"), 0, {"a": [0.9, 0.5]}, labels=CELLS)
    found = comparison.compare([results])
    assert found.metrics == ("dice",)
    name = f"{model(VSS, '2d')}/fold_0"
    assert f"F1 is left out, because {name} has none (1 such runs)." in found.notes
    assert f"{name} has no F1 (validation/instances.json): validate again" in refused(results, metrics=["F1"])


def test_instances_recovered_otherwise_are_refused(results):
    cells(results, LOG, {"a": 0.8})
    cells(results, VSS, {"a": 0.8}, instance_settings={"grow_px": 0})
    assert "have instance metrics of another grow_px: 2 and 0; validate both again" in refused(results)
    assert comparison.compare([results], metrics=["Dice"]).metrics == ("dice",)


def test_instances_of_other_cases_are_refused(results):
    cells(results, LOG, {"a": 0.8})
    fold = cells(results, VSS, {"a": 0.8})
    file = fold / "validation" / "instances.json"
    file.write_text(file.read_text().replace('"case": "a"', '"case": "b"'))
    assert "instances.json and summary.json beside it have other cases (a): validate again" in refused(results)


def test_the_average_of_one_class_counts_runs(results):
    # Fold 1 has one image, and half of the average: there VMamba is far better, in all others a little worse.
    for trainer, many, one in ((LOG, 0.81, 0.5), (VSS, 0.80, 0.65)):
        for seed in (1, 2):
            cells(results, f"{trainer}_seed{seed}", {f"cell_{k:02d}": many for k in range(40)})
            cells(results, f"{trainer}_seed{seed}", {"other": one}, fold=1)
    found = comparison.compare([results], metrics=["F1"])
    (pair,) = [pair for pair in found.pairs if pair.label == "average"]
    pair = replace(pair, test=replace(pair.test, low=0.001), p_holm=0.001, run_margin=0.001)
    words = comparison.conclusion(replace(found, pairs=(pair,)), "f1")
    assert words == (
        "F1: VMamba has the best average; it is worse than LoGVMamba case by case, since the average counts runs and "
        "not cases."
    )


# What the text says of the numbers


def two_methods(results: Path, difference: float, seeds: int, spread: float = 0.0) -> comparison.Comparison:
    base = scores(0, 0.80, 30)
    for seed in range(1, seeds + 1):
        shift = spread * (-1) ** seed
        for trainer, more in ((LOG, difference + shift), (VSS, -shift)):
            dice = {case: [round(min(value + more, 1), 3) for value in row] for case, row in base.items()}
            write_run(results, model(f"{trainer}_seed{seed}"), 0, dice)
    return comparison.compare([results])


def verdict(found: comparison.Comparison) -> str:
    return next(pair.verdict for pair in found.pairs if pair.label == "average")


def test_a_difference_in_every_case_and_every_seed_is_beyond_noise(results):
    found = two_methods(results, 0.05, seeds=3, spread=0.001)
    assert verdict(found) == "beyond noise"
    assert comparison.conclusion(found, "dice") == (
        "Dice: LoGVMamba has the best average; it is beyond noise better than VMamba."
    )
    assert "†" not in tables.as_markdown(found).split("Each value is")[0]


def test_a_difference_that_the_seeds_do_not_bear_out_is_within_noise(results):
    found = two_methods(results, 0.01, seeds=2, spread=0.05)
    (pair,) = [pair for pair in found.pairs if pair.label == "average"]
    assert pair.p_holm < 0.05, "over the cases alone it looks significant"
    assert verdict(found) == "within noise"
    assert "these data do not tell them apart" in comparison.conclusion(found, "dice")
    assert re.search(r"VMamba \| 0\.\d+ ± 0\.\d+ † \|", tables.as_markdown(found))


@pytest.mark.parametrize("lacking", [0, 2])
def test_cases_that_one_seed_lacks_are_no_noise_between_trainings(lacking, results):
    for name, more in (("LoGVMamba", 0.0), ("VMamba", 3.0)):
        for seed in (1, 2, 3):
            model = f"nnUNetTrainer{name}_seed{seed}__nnUNetPlans__3d_fullres"
            values = {f"case_{case:02}": 2 + 3.0 * case + more * (1 + case / 20) + seed / 100 for case in range(12)}
            gone = list(values)[12 - lacking :] if (name, seed) == ("VMamba", 2) else []
            surface = {case: [{"HD95": None if case in gone else hd95}] * 2 for case, hd95 in values.items()}
            write_run(results, model, 0, dict.fromkeys(values, [0.8, 0.8]), surface=surface)
    found = comparison.compare([results], metrics=["HD95"])
    (pair,) = [pair for pair in found.pairs if pair.label == "average"]
    assert pair.run_margin < 0.1
    assert pair.verdict == "beyond noise"


def test_one_training_each_proves_nothing_about_the_method(results):
    found = two_methods(results, 0.05, seeds=1)
    assert verdict(found) == "one training each"
    assert "may be the luck of that training" in comparison.conclusion(found, "dice")
    assert any("has no standard error" in note for note in found.notes)


def test_equal_methods_are_both_bold_and_within_noise(results):
    found = two_methods(results, 0.0, seeds=2)
    assert verdict(found) == "within noise"
    page = tables.as_markdown(found)
    assert len(re.findall(r"\| \w+ \| \*\*0\.\d+", page.split("## Dice per class")[0])) == 2


def one_that_misses(results: Path, cases: int, worse: float, seeds: int) -> comparison.Comparison:
    """Two methods in HD95; ``Misses`` has no value in the hardest cases, and is worse in all others."""
    for seed in range(1, seeds + 1):
        for trainer, misses in (("nnUNetTrainerGood", False), ("nnUNetTrainerMisses", True)):
            surface = {}
            for k in range(cases):
                distance = (None if misses else 60.0) if k < 4 else 2.0 + k / 100 + worse * misses + seed / 1000
                surface[f"case_{k}"] = [{"HD95": distance}, {"HD95": distance}]
            name = model(f"{trainer}_seed{seed}")
            write_run(results, name, 0, {case: [0.9, 0.8] for case in surface}, surface=surface)
    return comparison.compare([results], metrics=["HD95"])


def test_a_method_that_misses_the_hardest_cases_is_not_the_best(results):
    found = one_that_misses(results, cases=20, worse=0.5, seeds=2)
    assert found.scores["hd95"]["Misses"]["average"].mean < found.scores["hd95"]["Good"]["average"].mean
    assert comparison.conclusion(found, "hd95") == (
        "HD95: the averages cover different cases (values: Good 80 of 80, Misses 64 of 80), so none is called the "
        "best; on the cases that both have, Good is beyond noise better than Misses."
    )
    page = tables.as_markdown(found).split("Each value is")[0]
    assert "(64 of 80) |" in page
    assert "**" not in page
    assert "†" not in page
    assert r"\textbf" not in tables.as_latex(found)


def test_of_many_methods_those_are_counted_that_have_other_values(results):
    for trainer in "ABCD":
        surface = {f"case_{k}": [{"HD95": None if trainer == "C" and k < 4 else 2.0 + k}] * 2 for k in range(20)}
        write_run(results, model(f"nnUNetTrainer{trainer}"), 0, {case: [0.9, 0.8] for case in surface}, surface=surface)
    found = comparison.compare([results], metrics=["HD95"])
    assert "(values: C 32 of 40, all others 40 of 40)" in comparison.conclusion(found, "hd95")


def test_a_class_that_a_method_never_finds_does_not_make_it_the_best(results):
    for trainer, far in ((LOG, 40.0), (VSS, None)):
        surface = {case: [{"HD95": 2.0}, {"HD95": far}] for case in "abcdefgh"}
        write_run(results, model(trainer), 0, {case: [0.9, 0.8] for case in surface}, surface=surface)
    found = comparison.compare([results], metrics=["HD95"])
    rows = [line for line in tables.as_markdown(found).splitlines() if re.match(r"\| (LoG)?VMamba \|", line)]
    assert rows == [
        "| LoGVMamba | 21.00 |",
        "| VMamba | 2.00 (8 of 16) |",
        "| LoGVMamba | **2.00** | 40.00 | 21.00 |",
        "| VMamba | **2.00** † | - | 2.00 (8 of 16) |",
    ]
    assert "no pair differs beyond noise" in comparison.conclusion(found, "hd95")


def test_what_all_methods_lack_is_counted_in_the_cell_and_the_best_stays_bold(results):
    for trainer, value in ((LOG, 0.9), (VSS, 0.7)):
        write_run(results, model(trainer), 0, {"a": [value, NAN], "b": [value, 0.8]})
    page = tables.as_markdown(comparison.compare([results]))
    assert "| LoGVMamba | **0.9000** | **0.8000 (1 of 2)** | **0.8500 (3 of 4)** |" in page


def test_the_best_average_is_not_called_better_where_the_cases_say_the_opposite(results):
    # Posterior is in one case only, and half of the average: there VMamba is far better, in all others a little worse.
    for seed in (1, 2):
        for trainer, anterior, posterior in ((LOG, 0.81, 0.5), (VSS, 0.80, 0.65)):
            dice = {f"case_{k:02d}": [anterior, NAN if k else posterior] for k in range(40)}
            write_run(results, model(f"{trainer}_seed{seed}"), 0, dice)
    found = comparison.compare([results])
    (pair,) = [pair for pair in found.pairs if pair.label == "average"]
    assert (pair.verdict, pair.ordered) == ("beyond noise", ("LoGVMamba", "VMamba"))
    assert comparison.conclusion(found, "dice") == (
        "Dice: VMamba has the best average; it is worse than LoGVMamba case by case, since the average counts classes "
        "and not cases."
    )
    assert re.search(r"\| LoGVMamba \| 0\.6550 ± 0\.0000 \(82 of 160\) † \|", tables.as_markdown(found))


def test_differences_that_count_as_ties_are_never_beyond_noise(results):
    for seed in (1, 2):
        for trainer, more in ((LOG, 3e-9), (VSS, 0.0)):
            dice = {f"case_{k:02d}": [0.8 + k / 1000 + more * (1 + k / 50), 0.7] for k in range(20)}
            write_run(results, model(f"{trainer}_seed{seed}"), 0, dice)
    assert {pair.verdict for pair in comparison.compare([results]).pairs} == {"within noise"}


def test_an_interval_without_bounds_excludes_nothing(results):
    found = two_methods(results, 0.05, seeds=3, spread=0.001)
    (pair,) = [pair for pair in found.pairs if pair.label == "average"]
    assert pair.verdict == "beyond noise"
    assert replace(pair, test=replace(pair.test, low=NAN, high=NAN)).verdict == "within noise"


def test_few_cases_are_said_to_prove_nothing(results):
    for trainer, value in ((LOG, 0.9), (VSS, 0.1)):
        write_run(results, model(trainer), 0, {case: [value, value] for case in "abcd"})
    found = comparison.compare([results])
    assert verdict(found) == "within noise"
    assert "With 4 cases no p-value can be below 0.125, whatever the methods do." in found.notes


def test_trainings_on_all_cases_and_unequal_conditions_are_named(results):
    record = {"epochs_done": 5, "iterations_per_epoch": 10, "recipe": {"optimizer": "adam", "initial_lr": 0.001}}
    for trainer, optimizer in ((LOG, "adam"), (VSS, "sgd")):
        recipe = {"optimizer": optimizer, "initial_lr": 0.001}
        write_run(results, model(trainer), "all", {"a": [0.9, 0.8]}, record={**record, "recipe": recipe})
    notes = comparison.compare([results]).notes
    assert any(note.startswith("Fold all is validated on the cases it was trained on") for note in notes)
    assert "Not trained alike, recipe: LoGVMamba adam 0.001; VMamba sgd 0.001." in notes
    assert not any("iterations" in note for note in notes)


def test_scores_that_are_not_of_the_final_weights_are_named(results):
    done = {"epochs": 6, "epochs_done": 6, "validated_epochs": 6}
    write_run(results, model(LOG), 0, {"a": [0.9, 0.8]}, record=done | {"validated_epochs": 4})
    write_run(results, model(LOG), 1, {"b": [0.9, 0.8]}, record=done | {"validated_epochs": 5})
    for fold, case in enumerate("ab"):
        write_run(results, model(VSS), fold, {case: [0.9, 0.8]}, record=done)
        write_run(results, model(STOCK), fold, {case: [0.9, 0.8]})
    (note,) = [note for note in comparison.compare([results]).notes if "final weights" in note]
    assert note == "Not the final weights, as with --val_best: LoGVMamba after 4 of 6, 5 of 6 epochs."


def test_an_adopted_model_that_was_trained_on_is_scored_with_its_final_weights(results):
    for trainer in (LOG, VSS):
        record = {"epochs": 6, "epochs_done": 6, "validated_epochs": 106}
        write_run(results, model(trainer), 0, {"a": [0.9, 0.8]}, record=record)
    assert not any("final weights" in note for note in comparison.compare([results]).notes)


# Costs


def test_costs_are_the_medians_of_the_records(results):
    for fold, seconds in enumerate((10.0, 12.0, 30.0)):
        record = {"parameters": 3_080_919, "multiply_adds": 4_200_000_000, "peak_memory_bytes": 2**30}
        dice = {f"case_{fold}": [0.9, 0.8]}
        write_run(results, model(LOG), fold, dice, record={**record, "median_seconds_per_epoch": seconds})
        write_run(results, model(STOCK), fold, dice)
    found = comparison.compare([results])
    row = next(line for line in tables.as_markdown(found).splitlines() if line.startswith("| LoGVMamba |"))
    assert row.endswith("| 3.08 | 4.20 | 12.0 | 1.00 |")
    stock = next(line for line in tables.as_markdown(found).splitlines() if line.startswith("| nnUNetTrainer |"))
    assert stock.endswith("| - | - | - | - |")
    assert "No record of what it cost (written by our trainers only): nnUNetTrainer." in found.notes


# Names and folders


def test_rows_are_called_by_what_differs(results):
    for configuration in ("window_1", "window_3"):
        write_run(results, model(f"{LOG}_seed1", configuration), 0, {"a": [0.9, 0.8]})
    assert [m.name for m in comparison.compare([results]).methods] == ["window_1", "window_3"]
    write_run(results, model(VSS, "window_1"), 0, {"a": [0.9, 0.8]})
    names = [m.name for m in comparison.compare([results]).methods]
    assert names == ["LoGVMamba window_1", "LoGVMamba window_3", "VMamba window_1"]


def test_rows_can_be_renamed(results, capsys):
    for configuration in ("window_1", "window_3"):
        write_run(results, model(LOG, configuration), 0, {"a": [0.9, 0.8]})
    assert main(["compare", str(results), "--names", "window_1=R = 1", "--against", "R = 1"]) == 0
    page = capsys.readouterr().out
    assert "| R = 1 |" in page
    assert "| window_3 |" in page
    assert "there is no method 'x' to rename; there are window_1, window_3" in refused(results, renamed={"x": "y"})
    assert "two methods would be called 'window_3'" in refused(results, renamed={"window_1": "window_3"})
    assert main(["compare", str(results), "--names", "window_1"]) == 2
    assert "--names takes OLD=NEW, not 'window_1'" in capsys.readouterr().err


def test_roots_data_sets_models_and_folds_can_be_named_and_keep_their_order(results):
    for trainer in (LOG, VSS, STOCK):
        for fold in (0, 1):
            write_run(results, model(trainer), fold, {f"case_{fold}": [0.9, 0.8]})
    dataset = results / DATASET
    order = [dataset / model(VSS), dataset / model(LOG)]
    assert [m.name for m in comparison.compare(order).methods] == ["VMamba", "LoGVMamba"]
    assert len(comparison.compare([dataset]).methods) == 3
    folds = [dataset / model(trainer) / "fold_1" for trainer in (LOG, VSS)]
    assert comparison.compare([*folds, folds[0]]).folds == ("1",)
    assert comparison.compare([results], folds=["0"]).folds == ("0",)


def test_regions_get_their_names_and_the_order_of_dataset_json(results):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "eleventh": 11, "second": 2}
    for trainer in (LOG, VSS):
        write_run(results, model(trainer), 0, {"a": [0.9, 0.8, 0.7, 0.6, 0.5]}, labels=labels)
    found = comparison.compare([results])
    assert found.labels["dice"] == ("whole", "core", "enhancing", "eleventh", "second")
    assert found.scores["dice"]["VMamba"]["core"].mean == pytest.approx(0.8)


def test_what_is_not_finished_is_left_out_and_named(results):
    for trainer in (LOG, VSS):
        write_run(results, model(trainer), 0, {"a": [0.9, 0.8]})
    (results / DATASET / model(STOCK) / "fold_0").mkdir(parents=True)
    assert f"Left out, not finished: {model(STOCK)}/fold_0." in comparison.compare([results]).notes


# Formats


def test_every_format_is_written_and_says_the_same(results, tmp_path):
    for seed, trainer in enumerate([f"{LOG}_seed1", f"{LOG}_seed2", f"{VSS}_seed1", f"{VSS}_seed2"]):
        write_run(results, model(trainer), 0, scores(seed, 0.85))
    target = tmp_path / "tables"
    done = run_command(["logvmamba", "compare", results, "--output", target])
    assert "has the best average" in done.stdout
    assert sorted(path.name for path in target.iterdir()) == [
        "comparison.md",
        "comparison.tex",
        "costs.csv",
        "means.csv",
        "pairs.csv",
    ]
    with (target / "means.csv").open() as file:
        rows = {(row["method"], row["class"]): row for row in csv.DictReader(file)}
    mean = float(rows["LoGVMamba", "average"]["mean"])
    markdown, latex = ((target / name).read_text() for name in ("comparison.md", "comparison.tex"))
    assert f"{mean:.4f} ± " in markdown
    assert rf"{mean:.4f} $\pm$ " in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    assert latex.count(r"\textbf{") == markdown.count("**") // 2
    with (target / "pairs.csv").open() as file:
        (pair,) = [row for row in csv.DictReader(file) if row["class"] == "average"]
    assert float(pair["p"]) == pytest.approx(float(pair["p_holm"]))
    assert f"{pair['wins']}/{pair['ties']}/{pair['losses']}" in markdown

    printed = run_command(["logvmamba", "compare", results])
    assert printed.stdout == markdown
    only = run_command(["logvmamba", "compare", results, "--format", "latex", "--metrics", "IoU", "Dice"])
    assert only.stdout.count(r"\begin{tabular}") == 5


@pytest.mark.parametrize("name", ["a|b_c%d&e#f{h}", "=1+1", "<script>alert(1)"])
def test_names_from_the_disk_do_no_harm(name, results):
    for trainer in (name, VSS):
        write_run(results, model(trainer), 0, {"a": [0.9, 0.8]})
    found = comparison.compare([results])
    page, tex, files = tables.as_markdown(found), tables.as_latex(found), tables.as_csv(found)
    assert "<script" not in page
    table = [line for line in page.splitlines() if line.startswith("| ")][:3]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1, "a bar in a name must not end its cell"
    first_row = re.sub(r"\$[<>]\$|\\textbar\{\}", "", tex.split(r"\midrule")[1]).split(r"\\")[0]
    assert len(re.findall(r"(?<!\\)&", first_row)) == 1
    assert not re.search(r"(?<!\\)[%#$_{}]", re.sub(r"\\textbf\{([^}]*)\}|\$\^\\dagger\$", r"\1", first_row))
    assert not any(cell.startswith("=") for row in csv.reader(files["means.csv"].splitlines()) for cell in row)


ODD_NAMES = ("A_b%c&d#e{f}$g", "~x^y\\z", "±−↑↓†×≥é", "e\u0301 Δλ → ∞", "[opt]", "*star", 'a<b>c|d"e', "x\n\\relax")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (Debian: texlive-latex-recommended)")
def test_pdflatex_takes_tables_with_odd_names(results, tmp_path):
    labels = {"background": 0, "Größe_1 & 50%": 1, "Ödem ≥ 2": 2}
    for index in range(len(ODD_NAMES)):
        write_run(results, model(f"nnUNetTrainer{index}"), 0, scores(index, 0.8, 6), labels=labels)
    found = comparison.compare([results], renamed={str(index): name for index, name in enumerate(ODD_NAMES)})
    (tmp_path / "comparison.tex").write_text(tables.as_latex(found), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{comparison}\end{document}"
    )
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


# What is refused


def test_runs_on_other_cases_are_refused_and_named(results):
    write_run(results, model(LOG), 0, scores(0, 0.8, 5))
    write_run(results, model(VSS), 0, scores(0, 0.8, 4))
    sentence = refusal(results)
    assert (
        f"{model(LOG)}/fold_0 and {model(VSS)}/fold_0 were validated on other cases: hippocampus_004 is only in"
        in sentence
    )


def test_runs_with_other_training_cases_are_refused(results):
    for trainer, digest in ((LOG, "aaaa"), (VSS, "bbbb")):
        write_run(results, model(trainer), 0, scores(0, 0.8), record={"split": {"digest": digest}})
    assert "validated on the same cases but trained on others (their records name splits aaaa and bbbb)" in refused(
        results
    )


def test_runs_on_other_folds_are_refused_until_they_are_chosen(results):
    for trainer, folds in ((LOG, (0, 1)), (VSS, (0,))):
        for fold in folds:
            write_run(results, model(trainer), fold, scores(fold, 0.8, prefix=f"fold{fold}"))
    sentence = refused(results)
    assert f"{model(LOG)} has folds 0, 1, {model(VSS)} has fold 0; train the missing ones or choose with" in sentence
    assert comparison.compare([results], folds=["0"]).num_cases == 20


def test_wanted_folds_that_nobody_has_are_refused(results):
    for trainer in (LOG, VSS):
        write_run(results, model(trainer), 0, scores(0, 0.8))
    assert "there is no fold 1 in what was named" in refused(results, folds=["0", "1"])
    (results / DATASET / model(LOG) / "fold_1").mkdir()
    assert "fold 1 is finished nowhere" in refused(results, folds=["0", "1"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "brats"}, "surface metrics of another policy: nnunet and brats"),
        ({"tolerance": 1.0}, "surface metrics of another tolerance: 2.0 and 1.0"),
        ({"unit": "px"}, "surface metrics of another unit: mm and px"),
        ({"spacing": [1, 1, 1]}, "surface metrics of another spacing: None and [1, 1, 1]"),
    ],
)
def test_runs_scored_by_other_policies_are_refused(settings, words, results):
    for trainer, extra in ((LOG, {}), (VSS, settings)):
        surface = {"a": [{"HD95": 1.0}, {"HD95": 1.0}]}
        write_run(results, model(trainer), 0, {"a": [0.9, 0.8]}, surface=surface, surface_settings=extra)
    assert words in refused(results)


def test_surface_settings_do_not_matter_where_no_surface_is_compared(results):
    for trainer, policy in ((LOG, "nnunet"), (VSS, "brats")):
        surface = {"a": [{"HD95": 1.0}, {"HD95": 1.0}]}
        settings = {"policy": policy}
        write_run(results, model(trainer), 0, {"a": [0.9, 0.8]}, surface=surface, surface_settings=settings)
    assert "or compare other --metrics, e.g. Dice" in refused(results)
    found = comparison.compare([results], metrics=["Dice"])
    assert "Surface metrics" not in tables.as_markdown(found)


def test_runs_scored_against_other_references_are_refused(results):
    write_run(results, model(LOG), 0, scores(0, 0.8))
    write_run(results, model(VSS), 0, scores(0, 0.8), num_reference=8000)
    sentence = refused(results)
    assert "scored against other references or at another spacing: case hippocampus_000, label Anterior" in sentence
    assert "1000 of 100000 voxels in one and 8000 of" in sentence


def test_data_of_another_spacing_are_refused(results):
    write_run(results, model(LOG), 0, scores(0, 0.8))
    write_run(results, model(VSS), 0, scores(0, 0.8), spacing=[2.0, 1.0, 1.0])
    assert "planned for data of another spacing: (1.0, 1.0, 1.0) and (2.0, 1.0, 1.0)" in refused(results)
    write_run(results, model(STOCK), 0, scores(0, 0.8), spacing=[1.0, 1.0])
    assert "another spacing: (1.0, 1.0, 1.0) and (1.0, 1.0)" in refused(
        *(results / DATASET / model(trainer) for trainer in (LOG, STOCK))
    )


def test_runs_with_other_labels_are_refused(results):
    write_run(results, model(LOG), 0, {"a": [0.9, 0.8]})
    write_run(results, model(VSS), 0, {"a": [0.9]}, labels={"background": 0, "Anterior": 1})
    assert "have other labels: Anterior, Posterior and Anterior" in refused(results)


def test_two_data_sets_are_refused(results):
    write_run(results, model(LOG), 0, {"a": [0.9, 0.8]})
    write_run(results, model(VSS), 0, {"a": [0.9, 0.8]}, dataset="Dataset005_Other")
    assert "the results are of Dataset004_Hippocampus and Dataset005_Other" in refused(results)


def test_one_method_is_no_comparison_and_one_run_counts_once(results, tmp_path):
    write_run(results, model(LOG), 0, {"a": [0.9, 0.8]})
    assert "there is only one method, LoGVMamba: a comparison needs two" in refused(results)
    write_run(tmp_path / "copy", model(LOG), 0, {"a": [0.9, 0.8]})
    assert "are the same run twice: name one of them" in refused(results, tmp_path / "copy")


def test_models_and_folds_behind_links_have_the_names_of_the_links(results, tmp_path):
    folds = [write_run(results, model(trainer), 0, {"a": [0.9, 0.8]}) for trainer in (LOG, VSS)]
    disk = tmp_path / "disk"
    disk.mkdir()
    for linked, name in ((folds[0].parent, "run_17"), (folds[1], "x0")):
        linked.rename(disk / name)
        linked.symlink_to(disk / name)
    again = tmp_path / "again"  # a link to a model, called otherwise
    again.symlink_to(folds[1].parent)
    assert find_folds([results, *folds, again]) == folds
    assert find_folds([again]) == [folds[1]]
    for paths in ([results], [fold.parent for fold in folds], folds):
        assert len(comparison.compare(paths).methods) == 2
    for fold, trainer in zip(folds, (LOG, VSS)):
        assert (read_fold(fold).trainer, read_fold(fold).fold) == (trainer, "0")


@pytest.mark.parametrize("dataset", ["Dataset1001_Knee", "Dataset01_Knee", "Dataset12345_Knee"])
def test_data_sets_are_found_whatever_the_digits_of_their_numbers(dataset, results):
    for trainer in (LOG, VSS):
        fold = write_run(results, model(trainer), 0, {"a": [0.9, 0.8]}, dataset=dataset)
    for path in (results, results / dataset):
        found = comparison.compare([path])
        assert (found.dataset, len(found.methods)) == (dataset, 2)
    assert find_folds([fold.parents[1]]) == find_folds([results])
    (results / "not a data set" / model(LOG) / "fold_0").mkdir(parents=True)
    assert len(comparison.compare([results]).methods) == 2


def test_folders_without_results_are_refused(tmp_path):
    assert f"{tmp_path / 'none'} is not a folder" in refused(tmp_path / "none")
    assert f"{tmp_path} holds no trained model" in refused(tmp_path)
    (tmp_path / DATASET / model(LOG) / "fold_0").mkdir(parents=True)
    assert "has no validation/summary.json, and no other fold is finished" in refused(tmp_path)


@pytest.mark.parametrize("words", [("dice", "NSD_umamba"), ("DICE", "nsd_umamba", "Dice"), ("Dice", "nsd_UMAMBA")])
def test_metrics_are_known_in_any_capitalisation(words, results):
    for trainer in (LOG, VSS):
        write_run(results, model(trainer), 0, {"a": [0.9, 0.8]}, surface={"a": [{"nsd_umamba": 0.5}] * 2})
    assert comparison.compare([results], metrics=words).metrics == ("dice", "nsd_umamba")


def test_wishes_that_cannot_be_met_are_refused(results):
    for trainer in (LOG, VSS):
        write_run(results, model(trainer), 0, {"a": [0.9, 0.8]})
    assert "there is no metric 'Dics' in these results; there are Dice, IoU" in refused(results, metrics=["Dics"])
    assert "there is no metric 'HD95'" in refused(results, metrics=["HD95"])
    assert "there is no method 'X' to compare with; there are LoGVMamba, VMamba" in refused(results, against="X")
    assert "there is no fold 7 in what was named" in refused(results, folds=["7"])


@pytest.mark.parametrize(
    "name",
    [
        "validation/summary.json",
        "validation/surface.json",
        "validation/instances.json",
        "logvmamba.json",
        "../plans.json",
        "../dataset.json",
    ],
)
@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"metric_per_case": [{}]}', "\xff"])
def test_damaged_files_are_named(name, text, results):
    for trainer in (LOG, VSS):
        fold = write_run(results, model(trainer), 0, {"a": [0.9, 0.8]})
    path = fold / name
    path.write_bytes(text.encode("latin-1"))
    if name == "../plans.json" and text.startswith("{") and text != "{":
        assert len(comparison.compare([results]).methods) == 2  # nothing in it is needed
    else:
        assert str(path.resolve()) in refused(results)


def test_nothing_is_written_when_something_is_refused(results, tmp_path):
    write_run(results, model(LOG), 0, scores(0, 0.8, 5))
    write_run(results, model(VSS), 0, scores(0, 0.8, 4))
    refusal(results, "--output", tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def test_tables_of_an_older_comparison_do_not_stay_beside_new_ones(results, tmp_path, capsys):
    for trainer in (LOG, VSS):
        write_run(results, model(trainer), 0, {"a": [0.9, 0.8]})
    target = tmp_path / "tables"
    assert main(["compare", str(results), "--output", str(target)]) == 0
    assert sorted(path.name for path in target.iterdir()) == sorted(OWN)
    (target / "mine.txt").write_text("mine")
    assert main(["compare", str(results), "--output", str(target), "--format", "latex"]) == 0
    assert sorted(path.name for path in target.iterdir()) == ["comparison.tex", "mine.txt"]
    (target / "comparison.md").mkdir()
    before = (target / "comparison.tex").read_text()
    assert main(["compare", str(results), "--output", str(target), "--names", "VMamba=X"]) == 2
    assert "comparison.md is in the way: it is no file" in capsys.readouterr().err
    assert (target / "comparison.tex").read_text() == before


# Real trainings


@pytest.mark.slow
def test_real_trainings_are_compared(own_trained, capsys):
    shutil.rmtree(own_trained.model("2d_tiny"), ignore_errors=True)  # other tests may have trained it
    own_trained.train("3d_tiny", 0, trainer="nnUNetTrainerNoSSM_1epochs")
    results = own_trained.folders.results
    assert main(["compare", str(results)]) == 0
    page = capsys.readouterr().out
    lines = page.partition("## Average over classes, and cost")[2].partition("\n## ")[0].strip().splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert head[0] == "method"
    assert {title.split()[0] for title in head[1:4]} == {"Dice", "HD95", "NSD"}
    assert {row[0] for row in rows} == {"LoGVMamba", "NoSSM_1epochs"}
    for row in rows:
        assert len(row) == len(head) == 8
        assert "-" not in (row[1], *row[4:]), "Dice and four costs"
    assert "Not trained alike, iterations: LoGVMamba 40; NoSSM_1epochs 10." in page
    found = comparison.compare([results])
    assert (
        found.labels["dice"]
        == tuple(json.loads((own_trained.model("3d_tiny") / "dataset.json").read_text())["labels"])[1:]
    )
    for label, mean in zip(found.labels["dice"], own_trained.fold("3d_tiny").dice.values()):
        assert found.scores["dice"]["LoGVMamba"][label].mean == pytest.approx(mean)


@pytest.mark.slow
def test_seeds_of_one_trainer_are_runs_of_one_method(own_planned):
    """Two trainings of one seed agree, another seed differs, each has a folder of its own, and compare knows them."""
    losses = {}
    for trainer in ("nnUNetTrainerLoGVMamba_1epochs", "nnUNetTrainerNoSSM_1epochs"):
        for seed in (1, 2):
            fold = own_planned.train("3d_tiny", 0, trainer=f"{trainer}_seed{seed}")
            losses[trainer, seed] = fold.checkpoint["logging"]["train_losses"]
            assert json.loads((fold.path / "logvmamba.json").read_text())["seed"] == seed
    again = own_planned.train("3d_tiny", 0, trainer="nnUNetTrainerLoGVMamba_1epochs_seed1")
    assert again.checkpoint["logging"]["train_losses"] == losses["nnUNetTrainerLoGVMamba_1epochs", 1]
    assert losses["nnUNetTrainerLoGVMamba_1epochs", 1] != losses["nnUNetTrainerLoGVMamba_1epochs", 2]
    assert len(list((own_planned.folders.results / own_planned.dataset).iterdir())) == 4
    found = comparison.compare([own_planned.folders.results])
    assert [(method.name, [run.seed for run in method.runs]) for method in found.methods] == [
        ("LoGVMamba_1epochs", [1, 2]),
        ("NoSSM_1epochs", [1, 2]),
    ]
