"""``logvmamba study``: what is due, what is refused, how far it is; and the whole with the real commands."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest
import small_dataset
import small_model
import torch
from commands import NnunetFolders, commands_in
from holder import held_elsewhere

from nnunet_logvmamba.claims import Holder
from nnunet_logvmamba.cli import main
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin import cluster, first_run, plans, study, study_file
from nnunet_logvmamba.plugin.shards import Shard, Shards
from nnunet_logvmamba.plugin.study_file import Cluster

TRAINERS = ("nnUNetTrainerNoSSM", "nnUNetTrainerStockNetwork")
NAMES = [f"{trainer}_seed{seed}" for trainer in TRAINERS for seed in (1, 2)]
STUDY = """
dataset = 998
trainers = ["nnUNetTrainerNoSSM", "nnUNetTrainerStockNetwork"]
configurations = ["2d"]
folds = [0, 1]
seeds = [1, 2]
device = "cpu"
"""
ARCHITECTURE = {"network_class_name": "a.network", "arch_kwargs": {"features_per_stage": [8, 16]}}


@pytest.fixture
def file(folders, tmp_path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    return path


def plan(folders: NnunetFolders, **knobs: object) -> dict:
    """Plans as far as anybody looks at them, and their preprocessed cases."""
    there = folders.preprocessed / small_dataset.NAME
    for name in ("gt_segmentations", "data"):
        (there / name).mkdir(parents=True, exist_ok=True)
    for case in range(5):
        (there / "data" / f"ball_{case}.pkl").touch()
        labels = folders.raw / small_dataset.NAME / "labelsTr"
        shutil.copy2(labels / f"ball_{case}.nii.gz", there / "gt_segmentations")
    entry = {"data_identifier": "data", "patch_size": [16, 16], "batch_size": 2, "architecture": ARCHITECTURE, **knobs}
    content = {"dataset_name": small_dataset.NAME, "plans_name": "nnUNetPlans", "configurations": {"2d": entry}}
    (there / "nnUNetPlans.json").write_text(json.dumps(content))
    return content


def fold_of(folders: NnunetFolders, trainer: str = NAMES[0], fold: int = 0) -> Path:
    path = folders.results / small_dataset.NAME / f"{trainer}__nnUNetPlans__2d" / f"fold_{fold}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def finish(fold: Path) -> None:
    (fold / "validation").mkdir(exist_ok=True)
    (fold / "validation" / "summary.json").write_text("{}")
    (fold / "checkpoint_final.pth").touch()


def log_epochs(fold: Path, done: int, total: int = 10) -> Path:
    """Write what nnU-Net's log has once so many epochs are done and the next has begun."""
    (fold / "debug.json").write_text(json.dumps({"num_epochs": str(total)}))
    lines = []
    for epoch in range(done + 1):
        lines.append(f"2026-01-01 00:00:00.000000: Epoch {epoch} ")
        if epoch < done:
            lines += [f"2026-01-01 00:00:00.000000: train_loss -0.{epoch}", "2026-01-01: Epoch time: 60.0 s"]
    log = fold / "training_log_2026_1_1_00_00_00.txt"
    log.write_text("\n".join(lines) + "\n")
    return log


def dry_run(capsys, *words: object) -> str:
    assert main(["study", *map(str, words), "--dry-run"]) == 0
    return capsys.readouterr().out


def refused(capsys, *words: object) -> str:
    assert main(["study", *map(str, words)]) == 2
    printed = capsys.readouterr()
    assert commands_in(printed.out) == []
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("logvmamba: ")
    return line


def all_files(folders: NnunetFolders) -> list[str]:
    return sorted(str(path) for folder in vars(folders).values() for path in folder.rglob("*"))


def status(capsys, file: Path) -> dict[str, str]:
    assert main(["study", "status", str(file)]) == 0
    rows = re.findall(r"^(?:train )?(\w+(?: fold_\d)?) {2,}(\S+ *.*?)\s*$", capsys.readouterr().out, re.M)[1:]
    return {name: re.sub(" {2,}", ": ", state) for name, state in rows}


# What is due


def test_a_dry_run_prints_the_stock_commands_and_writes_nothing(file, folders, capsys):
    before = all_files(folders)
    found = commands_in(dry_run(capsys, file))
    assert found[0].startswith("nnUNetv2_plan_and_preprocess -d 998 -c 2d --verify_dataset_integrity")
    trained = [command for command in found if command.startswith("nnUNetv2_train")]
    assert trained == [f"nnUNetv2_train 998 2d {k} -tr {name} -device cpu" for name in NAMES for k in (0, 1)]
    assert [command.split()[1] for command in found if command.startswith("logvmamba")] == [
        *["evaluate", "report"] * 8,
        "compare",
    ]
    results = folders.results / small_dataset.NAME
    models = " ".join(str(results / f"{name}__nnUNetPlans__2d") for name in NAMES)
    assert found[-1] == f"logvmamba compare {models} --folds 0 1 --output {results / 'studies' / 'small' / 'tables'}"
    assert all_files(folders) == before


def test_options_say_the_same_as_a_file_and_more_than_it(file, capsys):
    options = ("-d", 998, "-c", "2d", "--trainers", *TRAINERS, "--folds", 0, 1, "--seeds", 1, 2, "--device", "cpu")
    of_file = dry_run(capsys, "run", file)
    assert dry_run(capsys, *options, "--name", "small") == of_file
    assert dry_run(capsys, file, "--seeds", 1, 2) == of_file
    fewer = commands_in(dry_run(capsys, file, "--seeds", 3, "--folds", "all"))
    trained = [command for command in fewer if command.startswith("nnUNetv2_train")]
    assert trained == [f"nnUNetv2_train 998 2d all -tr {name}_seed3 -device cpu" for name in TRAINERS]


def test_configurations_are_derived_plans_and_scans_are_named_and_the_table_is_as_told(file, folders, tmp_path, capsys):
    scans = tmp_path / "scans"
    scans.mkdir()
    image = folders.raw / small_dataset.NAME / "imagesTr" / "ball_0_0000.nii.gz"
    (scans / image.name).write_bytes(image.read_bytes())
    more = f"""
[derive.wide]
from = "2d"
set = {{ placement = "head", window = 5 }}
batch_size = 4
[predict]
images = "{scans}"
[compare]
metrics = ["Dice"]
names = {{ "NoSSM wide" = "no scan" }}
"""
    text = STUDY.replace('["2d"]', '["2d", "wide"]').replace("StockNetwork", "LVMamba")
    file.write_text(text + more)
    found = commands_in(dry_run(capsys, file))
    assert "logvmamba plans -d 998 -c 2d --name wide --set placement=head window=5 --batch-size 4" in found
    assert sum(command.startswith("nnUNetv2_plan") for command in found) == 1
    predicted = [command for command in found if command.startswith("nnUNetv2_predict")]
    assert len(predicted) == 8
    assert f"-i {scans} " in predicted[-1]
    assert " -c wide -f 0 1 -tr nnUNetTrainerLVMamba_seed2 -device cpu" in predicted[-1]
    assert len(commands_in(dry_run(capsys, file, "--folds", 0))) < len(found)
    assert " --metrics Dice --names 'NoSSM wide=no scan' " in found[-1]
    labels = folders.raw / small_dataset.NAME / "labelsTr"
    more = more.replace("[compare]", f'references = "{labels}"\n[compare]').replace('["Dice"]', '["F1", "Dice"]')
    file.write_text(text + more)
    both = [command for command in commands_in(dry_run(capsys, file)) if command.startswith("logvmamba compare")]
    assert " --metrics F1 Dice --names" in both[0]
    assert "/tables_held_out" in both[1]
    assert " --metrics Dice --names 'NoSSM wide=no scan' " in both[1], "predictions have no instances"
    assert both[1].count("/predictions/nnUNetPlans__wide__folds_0_1/") == 4


def test_what_is_done_is_left_out_and_what_was_begun_goes_on(file, folders, capsys):
    plan(folders)
    finish(fold_of(folders))
    (fold_of(folders, fold=1) / "checkpoint_latest.pth").touch()
    (fold_of(folders, NAMES[1]) / "checkpoint_final.pth").touch()
    found = commands_in(dry_run(capsys, "resume", file))
    trained = [command.removesuffix(" -device cpu") for command in found if command.startswith("nnUNetv2_train")]
    assert trained[0] == f"nnUNetv2_train 998 2d 1 -tr {NAMES[0]} -device cpu --c"
    assert trained[1] == f"nnUNetv2_train 998 2d 0 -tr {NAMES[1]} -device cpu --val"
    assert len(trained) == 7
    assert not [command for command in found if re.match("nnUNetv2_(plan|preprocess)", command)]


def test_a_result_without_its_weights_is_not_trained_again(file, folders, capsys):
    plan(folders)
    for fold in (0, 1):
        finish(fold_of(folders, fold=fold))
        (fold_of(folders, fold=fold) / "checkpoint_final.pth").unlink()
    said = dry_run(capsys, "resume", file)
    assert "6 of 8 training(s) to do" in said
    about = [command for command in commands_in(said) if NAMES[0] in command and "compare" not in command]
    assert about == [], "nothing is done again for it"


def test_on_a_cluster_the_device_is_that_of_its_nodes(file, capsys):
    text = STUDY.replace('device = "cpu"\n', "")
    file.write_text(f"{text}[cluster]\ngpus = 2\n")
    assert " -device cuda -num_gpus 2" in dry_run(capsys, file, "--on", "slurm")
    file.write_text(f"{text}[cluster]\ngpus = 0\n")
    assert " -device cpu" in dry_run(capsys, file, "--on", "slurm")


# What is refused


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"nnUNetTrainerNoSSM"', '"nnUNetTrainerNoSM"', "nnUNetTrainerNoSSM"),
        ('"nnUNetTrainerNoSSM"', '"MyTrainer"', "nnU-Net finds no trainer 'MyTrainer_seed1'"),
        ("folds = [0, 1]", "folds = [0, 7]", "there is no fold 7: nnU-Net makes 5 folds, 0 to 4"),
        ("folds = [0, 1]", "folds = [-1]", 'folds must be a list of the numbers of folds, or "all", not [-1]'),
        ("folds =", "fold =", "has no key 'fold': did you mean folds?"),
        ("seeds = [1, 2]", 'seeds = ["a"]', "seeds must be a list of whole numbers, not ['a']"),
        ("seeds = [1, 2]", "seeds = []", "seeds must be a list of whole numbers, not []"),
        ("dataset = 998", "dataset = 997", "has no data set 997 (there are Dataset998_Balls)"),
        ("dataset = 998", "", "lacks 'dataset', the number or the name of a data set"),
        ("dataset = 998", "dataset = 998 998", "is not TOML"),
        ('["2d"]', '["4d"]', "there is no configuration '4d': nnU-Net plans 2d, 3d_fullres, 3d_lowres"),
        ('["2d"]', "[]", "configurations must be a word or a list of words, not []"),
        ('device = "cpu"', 'device = "tpu"', "device must be one of auto, cpu, cuda, mps, not 'tpu'"),
        ('device = "cpu"', 'plans = "Other"', "there are no plans Other"),
        ('device = "cpu"', 'name = "a/b"', "name must be made of letters, digits, '_', '.' and '-', not 'a/b'"),
        ('device = "cpu"', "[predict]\nimages = 3", "[predict]: images must be a folder, not 3"),
        ('device = "cpu"', '[predict]\nreferences = "x"', "[predict] lacks 'images'"),
        ('device = "cpu"', '[predict]\nimages = "nowhere/x"', "nowhere/x"),
        ('device = "cpu"', '[derive.wide]\nfrom = "2d"', "add 'wide' to the configurations"),
        ('device = "cpu"', "[derive.wide]\nset = {}", "[derive.wide] lacks 'from'"),
        (
            '["2d"]',
            '["2d", "wide"]\nderive.wide = { from = "2d", set = { window = 5 } }',
            "nnU-Net planned, but wide names another: derive it with keep_network = true",
        ),
        (
            'device = "cpu"',
            '[compare]\nnames = { "NoSSM 2d" = "no scan" }',
            "there is no method 'NoSSM 2d' to rename; there are NoSSM, StockNetwork",
        ),
        ('device = "cpu"', '[compare]\nagainst = "nnU-Net"', "there is no method 'nnU-Net' to compare with; there are"),
        ('device = "cpu"', "derive.wide = 1", "[derive.wide] must be a table, not 1"),
        ('device = "cpu"', '[cluster]\ntime = "24:00"', "time must be minutes, or [D-]HH:MM:SS as SLURM writes it"),
        ('device = "cpu"', '[cluster]\nmemory = "much"', "memory must be as for sbatch --mem, such as 32G, not 'much'"),
        ('device = "cpu"', "[cluster]\ngpu = 1", "gpu must be a word, not 1"),
        ('device = "cpu"', "cluster = 1", "cluster must be a table, not 1"),
    ],
)
def test_a_file_with_a_fault_is_answered_in_one_sentence_and_nothing_is_begun(
    file, folders, capsys, old, new, sentence
):
    assert old in STUDY
    file.write_text(STUDY.replace(old, new))
    before = all_files(folders)
    assert sentence in refused(capsys, "run", file)
    assert all_files(folders) == before


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert f"there is no file {tmp_path / 'no.toml'}" in refused(capsys, tmp_path / "no.toml")


def test_a_misspelt_action_is_no_file(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["study", "statsu", "x.toml"])
    assert "invalid choice: 'statsu'" in capsys.readouterr().err


def test_slurms_times_are_minutes():
    for text, minutes in {"24:00:00": 1440, "1-00:30:00": 1470, "0:00:30": 1, "90": None}.items():
        content = {"dataset": 1, "trainers": "T", "cluster": {"time": text}}
        if minutes is None:
            with pytest.raises(UserError, match="time must be minutes"):
                study_file.make_study(content, where="x", name="x")
        else:
            assert study_file.make_study(content, where="x", name="x").cluster.time == minutes


def test_a_model_of_another_study_is_refused_and_one_of_the_same_is_not(file, folders, capsys):
    planned_now = plan(folders)
    fold = fold_of(folders, TRAINERS[1] + "_seed1")
    finish(fold)
    (fold.parent / "plans.json").write_text(json.dumps(planned_now))
    assert len(commands_in(dry_run(capsys, file))) == 25 - 1
    plan(folders, patch_size=[32, 32])
    line = refused(capsys, "run", file)
    assert f"{fold.parent} was trained otherwise, its plans differ from nnUNetPlans in patch_size" in line
    (fold / "checkpoint_final.pth").unlink()  # a result stands without its weights, too
    assert "was trained otherwise" in refused(capsys, "run", file)


def test_the_folder_of_another_study_is_refused_and_one_that_has_grown_is_not(file, folders, capsys):
    planned = study.Planned(study_file.make_study(study_file.read_toml(file), where="x", name="small"))
    planned.remember({})
    assert "16 job(s)" not in dry_run(capsys, file, "--folds", 0, 1, 2)
    line = refused(capsys, "run", file, "--seeds", 1)
    assert f"{planned.folder} is of another study (its trainers: {', '.join(NAMES)}, not " in line
    assert "give this one another name" in refused(capsys, "status", file, "--folds", 0)
    text = STUDY.replace("StockNetwork", "LVMamba").replace("[0, 1]", "[0]")
    for number, (old, new) in enumerate([("x", "x"), ("[0]", "[0, 1]"), ('["2d"]', '["2d", "wide"]')]):
        text = text.replace(old, new)
        derived = '[derive.wide]\nfrom = "2d"\nset = { window = 5 }\n' * (number == 2)
        file.write_text(f'name = "growing"\n{text}{derived}')
        dry_run(capsys, file)
        study.Planned(study_file.make_study(study_file.read_toml(file), where="x", name="small")).remember({})
    file.write_text(file.read_text().replace("window = 5", "window = 1"))
    assert "is of another study (its derive: " in refused(capsys, "run", file)


def test_other_options_of_the_comparison_make_the_table_anew_and_no_training(file, folders, monkeypatch, capsys):
    plan(folders)
    for name in NAMES:
        for fold in (0, 1):
            finish(fold_of(folders, name, fold))
    described = study_file.read_toml(file)

    def planned(**compare: object) -> study.Planned:
        return study.Planned(study_file.make_study({**described, "compare": compare}, where="x", name="small"))

    first = planned()
    first.table.parent.mkdir(parents=True)
    first.table.write_text("the table")
    compare = study.Job("compare")
    assert compare not in first.due()  # made before it was written down with which options
    first.remember_compared()
    assert compare not in first.due()
    other = planned(metrics=["Dice"])
    assert compare in other.due()
    other.remember({other.key(compare): ""})  # begun, and broken off
    assert compare in other.due()
    assert other.table.read_text() == "the table"
    other.remember_compared()
    assert compare not in other.due()
    assert compare in first.due()
    for name in NAMES:  # trained before the table was made, and not in it
        finish(fold_of(folders, name, 2))
        os.utime(fold_of(folders, name, 2) / "validation" / "summary.json", (1, 1))
    described["folds"] = [0, 1, 2]
    assert compare in planned(metrics=["Dice"]).due()


def test_a_study_that_is_trained_is_compared_though_labels_were_corrected_since(file, folders, capsys):
    planned_now = plan(folders)
    label = folders.raw / small_dataset.NAME / "labelsTr" / "ball_3.nii.gz"
    shutil.copy2(label.with_name("ball_2.nii.gz"), label)
    assert f"1 label map(s) are not what was preprocessed, the first is {label}" in refused(capsys, "run", file)
    for trainer in TRAINERS:
        for seed in (1, 2):
            for fold in (0, 1):
                folder = fold_of(folders, f"{trainer}_seed{seed}", fold)
                finish(folder)
                (folder / "checkpoint_final.pth").unlink()
                (folder.parent / "plans.json").write_text(json.dumps(planned_now))
    said = dry_run(capsys, file)
    assert "ATTENTION: 1 label map(s) are not what was preprocessed" in said
    assert not any(command.startswith("nnUNetv2_train") for command in commands_in(said))


def test_what_somebody_else_trains_is_left_to_them_and_the_rest_is_done(file, folders, monkeypatch, capsys):
    plan(folders)
    (fold_of(folders) / "checkpoint_latest.pth").touch()
    log = log_epochs(fold_of(folders), 4)
    text = dry_run(capsys, "run", file)
    assert f"somebody is at it: train {NAMES[0]}__nnUNetPlans__2d fold_0" in text
    found = commands_in(text)
    trained = [command for command in found if command.startswith("nnUNetv2_train")]
    assert len(trained) == 7
    assert f"nnUNetv2_train 998 2d 0 -tr {NAMES[0]} -device cpu" not in text
    assert not [command for command in found if command.startswith("logvmamba compare")]
    os.utime(log, (0, 0))
    assert f"nnUNetv2_train 998 2d 0 -tr {NAMES[0]} -device cpu --c" in dry_run(capsys, "run", file)


@pytest.mark.parametrize("network", [row.name for row in catalogue.NETWORKS])
def test_a_configuration_that_a_study_has_derived_is_its_own_the_next_time(
    network, file, folders, tmp_path, monkeypatch
):
    """Also where a network has defaults that JSON has no type for, and where weights are named by a relative path."""
    dims = min(catalogue.row(network).dims)
    content = plan(folders)
    entry = content["configurations"].pop("2d")
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 4,
            "features_per_stage": [8, 16, 32, 64],
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims] * 4,
            "strides": [[1] * dims, *[[2] * dims] * 3],
            "n_conv_per_stage": [2] * 4,
            "n_conv_per_stage_decoder": [2] * 3,
        },
        "_kw_requires_import": ["conv_op"],
    }
    entry |= {"architecture": architecture, "patch_size": [64] * dims, "spacing": [1.0] * dims}
    content["configurations"]["base"] = entry
    path = folders.preprocessed / small_dataset.NAME / "nnUNetPlans.json"
    path.write_text(json.dumps(content))
    path.with_name("dataset.json").write_bytes((folders.raw / small_dataset.NAME / "dataset.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    Path("w.pth").touch()
    weights = {"pretrained": "w.pth"} if network in ("LoGVMambaSwinUNet", "SwinUMamba") else {}
    derived = {"from": "base", "network": network, "train": weights}
    described = {"dataset": 998, "trainers": TRAINERS[0], "configurations": "mine", "derive": {"mine": derived}}
    made = study_file.make_study({**described, "device": "cpu"}, where="x", name="small")
    planned = study.Planned(made)
    (step,) = planned.part(0).configure()
    assert main(list(step.command[1:])) == 0
    assert "mine" in json.loads(path.read_text())["configurations"]
    study.Planned(made).check()


# A cluster that is not there, or refuses


def put_program(folder: Path, name: str, code: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n{code}\n")
    (folder / name).chmod(0o755)


def test_without_submitit_or_slurm_nothing_is_submitted(file, folders, monkeypatch, capsys):
    before = all_files(folders)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "pip install submitit" in refused(capsys, "run", file, "--on", "slurm")
    monkeypatch.delitem(sys.modules, "submitit")
    pytest.importorskip("submitit", reason="needs submitit, which is not installed")
    assert "there is no sbatch here" in refused(capsys, "run", file, "--on", "slurm")
    assert all_files(folders) == before


def test_a_dry_run_plans_for_a_cluster_from_anywhere_and_says_what_is_missing_here(
    file, folders, tmp_path, monkeypatch, capsys
):
    model = small_model.write_model(folders.results / small_dataset.NAME, 3, [16, 16, 16])
    images = folders.raw / small_dataset.NAME / "imagesTr"
    before = all_files(folders)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "submitit", None)
    note = "note: nothing could be submitted from here: --on slurm needs submitit: pip install"
    for words in ((file,), ("predict", model, images, tmp_path / "out", "--shards", 2)):
        said = dry_run(capsys, *words, "--on", "slurm")
        assert said.startswith(note)
        assert said.count(note) == 1
        assert commands_in(said)
    assert all_files(folders) == before


def test_a_cluster_that_refuses_one_job_gets_none(file, folders, tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit", reason="needs submitit, which is not installed")
    programs = tmp_path / "programs"
    refusal = "'sbatch: error: Batch job submission failed: Invalid partition'"
    count = "seen = Path(__file__).with_name('seen')\n"
    once = f"{count}if seen.exists(): sys.exit({refusal})\nseen.touch(); print('Submitted batch job 7')"
    put_program(programs, "sbatch", once)
    put_program(programs, "scancel", f"{count}seen.with_name('cancelled').write_text(' '.join(sys.argv[1:]))")
    put_program(programs, "squeue", "")
    put_program(programs, "srun", "")
    put_program(programs, "scontrol", "Path(__file__).with_name('released').write_text(' '.join(sys.argv[1:]))")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    assert main(["study", "run", str(file), "--on", "slurm"]) == 2
    error = capsys.readouterr().err.strip()
    assert error == (
        "logvmamba: the cluster refuses the jobs, and nothing was submitted: sbatch: error: Batch job submission "
        "failed: Invalid partition"
    )
    assert (programs / "cancelled").read_text() == "7"
    assert not (programs / "released").exists()
    assert not (folders.results / small_dataset.NAME / "studies" / "small" / study.RECORD).exists()


def test_jobs_find_the_folders_of_variables_wherever_they_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", "raw")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_extTrainer", f"mine{os.pathsep}~/theirs")
    monkeypatch.setenv("nnUNet_n_proc_DA", "3")
    found = cluster._environment(Cluster(), 1)
    assert found["nnUNet_raw"] == str(tmp_path / "raw")
    assert found["nnUNet_results"] == str(tmp_path / "results")
    assert found["nnUNet_extTrainer"] == os.pathsep.join((str(tmp_path / "mine"), os.path.expanduser("~/theirs")))
    assert found["nnUNet_n_proc_DA"] == "3"
    monkeypatch.setenv("nnUNet_logvmamba_pretrained", "none")
    assert cluster._environment(Cluster(), 1)["nnUNet_logvmamba_pretrained"] == "none"


@pytest.mark.parametrize(("gpus", "workers"), [(0, "12"), (1, "12"), (2, "6"), (24, "1")])
def test_the_gpus_of_a_job_share_its_cores(gpus, workers, monkeypatch):
    """nnU-Net starts so many workers for each of them, and our trainers so many threads."""
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    expected = {"nnUNet_n_proc_DA": workers, "OMP_NUM_THREADS": workers}
    assert expected.items() <= cluster._environment(Cluster(cpus=12), gpus).items()


def test_threads_that_a_node_has_set_stay(monkeypatch):
    """By a line of ``setup``, say; nnU-Net's variables are those of the submission."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("nnUNet_n_proc_DA", "5")
    seen: dict[str, str] = {}
    given = {"OMP_NUM_THREADS": "12", "nnUNet_n_proc_DA": "12"}
    cluster.Resumable(lambda: seen.update(os.environ), given)()
    assert (seen["OMP_NUM_THREADS"], seen["nnUNet_n_proc_DA"]) == ("3", "12")
    monkeypatch.delenv("OMP_NUM_THREADS")
    cluster.Resumable(lambda: seen.update(os.environ), given)()
    assert seen["OMP_NUM_THREADS"] == "12"


def test_what_waits_for_what_is_told_to_slurm(file, folders, tmp_path, monkeypatch, capsys):
    """The real sbatch files, and a queue in which two of the jobs are."""
    pytest.importorskip("submitit", reason="needs submitit, which is not installed")
    more = (
        '[cluster]\npartition = "long"\naccount = "us"\ngpu = "a100"\ntime = "2-00:00:00"\nmemory = "32G"\ncpus = 8\n'
    )
    file.write_text(
        STUDY.replace("cpu", "cuda") + more + 'array_limit = 3\nsetup = "module load x"\nsbatch = { qos = "q" }\n'
    )
    programs = tmp_path / "programs"
    code = "seen = Path(__file__).with_name('seen')\n"
    code += "text = seen.read_text() if seen.exists() else ''\n"
    code += "seen.write_text(text + Path(sys.argv[1]).read_text() + '\\n---\\n')\n"
    put_program(programs, "sbatch", code + "print('Submitted batch job', text.count('---') + 7)")
    put_program(programs, "squeue", "print('8_0 RUNNING\\n8_1 PENDING\\n9 PENDING')")
    put_program(
        programs,
        "scancel",
        "Path(__file__).with_name('cancelled').write_text(' '.join(sys.argv[1:]))",
    )
    put_program(programs, "srun", "")
    put_program(programs, "scontrol", "Path(__file__).with_name('released').write_text(' '.join(sys.argv[1:]))")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    assert main(["study", "run", str(file), "--on", "slurm"]) == 0
    prepare, train, compare, _ = (programs / "seen").read_text().split("\n---\n")
    for text in ("partition=long", "account=us", "time=2880", "mem=32G", "cpus-per-task=8", "qos=q", "signal=USR2@120"):
        assert f"#SBATCH --{text}\n" in train
    assert all("#SBATCH --requeue\n" in text for text in (prepare, train, compare))
    assert "--gpus-per-node=a100:1\n" in train
    assert "gpus-per-node" not in prepare + compare
    assert "--array=0-7%3\n" in train
    assert "--dependency=afterok:7\n" in train
    assert "--dependency=afterany:7,afterany:8\n" in compare
    assert "\nmodule load x\n" in train
    jobs = folders.results / small_dataset.NAME / "studies" / file.stem / "jobs"
    assert all("#SBATCH --hold\n" in text and f"#SBATCH --chdir={jobs}\n" in text for text in (prepare, train, compare))
    assert (programs / "released").read_text() == "release 7 8 9"
    found = status(capsys, file)
    assert found[f"{NAMES[0]}__nnUNetPlans__2d fold_0"] == "running: before its first epoch"
    assert found[f"{NAMES[0]}__nnUNetPlans__2d fold_1"] == "waiting"
    assert found[f"{NAMES[1]}__nnUNetPlans__2d fold_0"] == "missing"
    # Those in the queue stay there; the comparison waits for them and for those that are new.
    (programs / "seen").write_text("---\n" * 3)
    plan(folders)
    assert main(["study", "resume", str(file)]) == 0
    assert "7 submitted to SLURM, 2 there already" in capsys.readouterr().out
    assert (programs / "cancelled").read_text() == "9"
    train, compare, _ = (programs / "seen").read_text().removeprefix("---\n" * 3).split("\n---\n")
    assert "--array=0-5%3\n" in train
    assert "--dependency=afterany:10,afterany:8\n" in compare
    # Nothing runs here what the queue has, and no number is lost.
    assert "2 job(s) of this study are in SLURM's queue, the first is 8_0: give --on slurm again" in refused(
        capsys, "run", file, "--device", "cpu"
    )
    # Nor where nobody can ask the queue; of the jobs that there are, nothing is forgotten.
    record = jobs.parent / study.RECORD
    before = record.read_bytes()
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", "")
        unknown = "no squeue here that would tell what became of them: run this where they were submitted, or remove "
        unknown += str(record)
        assert unknown in refused(capsys, "run", file, "--device", "cpu", "--on", "local")
        assert unknown in refused(capsys, "cancel", file)
        assert main(["study", "status", str(file)]) == 0
        assert "note: jobs were submitted to SLURM" in capsys.readouterr().out
    assert record.read_bytes() == before
    assert main(["study", "cancel", str(file)]) == 0
    assert (programs / "cancelled").read_text() == "8_0 8_1"


@pytest.mark.parametrize("more", ["a trainer", "a configuration"])
def test_what_is_added_while_slurm_still_prepares_waits_for_that(more, file, folders, tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit", reason="needs submitit, which is not installed")
    programs = tmp_path / "programs"
    code = "seen = Path(__file__).with_name('seen')\ntext = seen.read_text() if seen.exists() else ''\n"
    code += "seen.write_text(text + Path(sys.argv[1]).read_text() + '\\n---\\n')\n"
    put_program(programs, "sbatch", code + "print('Submitted batch job', text.count('---') + 7)")
    put_program(programs, "squeue", "print('7 RUNNING\\n8_0 PENDING\\n8_1 PENDING')")
    for name in ("srun", "scontrol", "scancel"):
        put_program(programs, name, "")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    words = ("study", "run", str(file), "--on", "slurm", "--seeds", "1", "--folds", "0")
    assert main([*words]) == 0
    (programs / "seen").write_text("---\n" * 3)
    added = {
        "a trainer": ("--trainers", *TRAINERS, "nnUNetTrainerLVMamba"),
        "a configuration": ("-c", "2d", "3d_fullres"),
    }
    assert main([*words, *added[more]]) == 0
    jobs = (programs / "seen").read_text().removeprefix("---\n" * 3).split("\n---\n")[:-1]
    waits = [re.findall("--dependency=(.*)", job) for job in jobs]
    if more == "a trainer":
        assert waits[0] == ["afterok:7"]
        assert len(waits) == 2
    else:
        assert waits[:2] == [["afterany:7"], ["afterok:10"]]
        assert len(waits) == 3
    assert {"afterany:7", "afterany:8"} <= set(waits[-1][0].split(","))


def test_a_job_can_be_pickled_and_put_back_into_the_queue(file, folders):
    helpers = pytest.importorskip("submitit.helpers", reason="needs submitit, which is not installed")
    described = study_file.make_study(study_file.read_toml(file), where="x", name="small")
    work = cluster.Resumable(cluster.Work(described, study.Job("train", 0, NAMES[0], "0")), {"a": "b"})
    assert pickle.loads(pickle.dumps(work)) == work
    again = work.checkpoint()
    assert isinstance(again, helpers.DelayedSubmission)
    assert again.function == work


def test_what_gets_no_gpu_asks_for_none(file, folders):
    small_dataset.copy_into(folders)
    content = {**study_file.read_toml(file), "device": "auto", "cluster": {"time": 60, "gpus": 1}}
    described = study_file.make_study(content, where="x", name="small")
    assert study.Planned(described, on="slurm", elsewhere=True).study.device == "cuda"
    cluster.Work(described, study.Job("prepare"))()  # all of it is done
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch sees no such device here"):
            cluster.Work(described, study.Job("train", 0, NAMES[0], "0"))()


def test_a_job_whose_time_is_up_again_and_again_in_vain_is_given_up(file, folders):
    pytest.importorskip("submitit.helpers", reason="needs submitit, which is not installed")
    described = study_file.make_study(study_file.read_toml(file), where="x", name="small")
    fold = fold_of(folders)
    work = cluster.Resumable(cluster.Work(described, study.Job("train", 0, NAMES[0], "0")), {}, limit_s=3480)

    def after(seconds: float) -> None:
        nonlocal work
        work.begun = time.time() - seconds
        work = pickle.loads(pickle.dumps(work)).checkpoint().function

    log_epochs(fold, 4)
    (fold / "checkpoint_latest.pth").write_bytes(b"x")
    for _ in range(9):
        after(60)  # preempted, which says nothing
    for _ in range(2):
        after(3500)
    (fold / "validation").mkdir()
    (fold / "validation" / "a.nii.gz").touch()  # a step further
    for _ in range(2):
        after(3500)
    # A training that is begun anew beside what an earlier one left makes progress by its own checkpoint.
    (fold / "checkpoint_final.pth").touch()
    after(3500)
    os.utime(fold / "checkpoint_latest.pth", ns=(1, 1))
    for _ in range(2):
        after(3500)
    with pytest.raises(
        UserError, match=r"its time was up 3 times, each after 58 min, and it had got no further, .* give it more"
    ):
        after(3500)


def test_a_job_that_is_told_to_end_waits_for_slurm_to_end_it(monkeypatch, tmp_path):
    """SLURM tells the whole step, and puts it back some seconds later, unless it has ended and so failed."""
    waited = []
    monkeypatch.setattr(cluster.time, "sleep", waited.append)
    for code in ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "raise SystemExit(1)"):
        work = cluster.Resumable(lambda code=code: first_run.run_steps([python(code)], tmp_path), {})
        with pytest.raises(first_run.StepFailed):
            work()
    assert waited == [cluster.SENT_AWAY_S]


def test_what_somebody_else_has_begun_meanwhile_is_left_to_them(file, folders, monkeypatch, capsys):
    plan(folders)
    planned = study.Planned(study_file.make_study(study_file.read_toml(file), where="x", name="small"))
    due = [job for job in planned.jobs if job.stage != "prepare"]
    first, second = (fold_of(folders, NAMES[0], fold) for fold in (0, 1))
    did = []

    def carry_out(planned: study.Planned, job: study.Job, **shown: object) -> None:
        did.append(planned.key(job))
        if job.trainer == NAMES[0] and job.fold == "0":
            finish(first)
            log_epochs(second, 3)  # by somebody else

    monkeypatch.setattr(study, "carry_out", carry_out)
    study.run_here(planned, due)
    left = [planned.key(job) for job in due if planned.key(job) not in did]
    assert left == [f"train {NAMES[0]}__nnUNetPlans__2d fold_1", "compare"]
    assert "left to whoever is at it" in capsys.readouterr().out
    # An interrupted study has not begun what comes later, so that is left to others the next time, too.
    assert left[0] not in planned.jobs_begun
    assert [planned.key(job) for job in planned.split(due)[1]] == [left[0]]


@pytest.mark.parametrize("stage", ["prepare", "predict"])
def test_a_job_that_begins_anew_each_time_is_given_up_after_the_third(stage, file, folders):
    pytest.importorskip("submitit.helpers", reason="needs submitit, which is not installed")
    described = study_file.make_study(study_file.read_toml(file), where="x", name="small")
    work = cluster.Resumable(cluster.Work(described, study.Job(stage)), {}, limit_s=3480)
    for _ in range(2):
        work.begun = time.time() - 3500
        work = work.checkpoint().function
    work.begun = time.time() - 3500
    with pytest.raises(UserError, match="its time was up 3 times"):
        work.checkpoint()


# How far it is


def test_the_status_is_read_from_nnunets_files(file, folders, capsys):
    plan(folders)
    finish(fold_of(folders))
    by_hand, stopped, old = (fold_of(folders, name, k) for name, k in ((NAMES[0], 1), (NAMES[1], 0), (NAMES[1], 1)))
    for fold in (by_hand, stopped, old):
        log_epochs(fold, 4)
    os.utime(log_epochs(old, 9), (1, 1))
    planned = study.Planned(study_file.make_study(study_file.read_toml(file), where="x", name="small"))
    jobs = {planned.key(job): job for job in planned.jobs}
    planned.remember({f"train {NAMES[1]}__nnUNetPlans__2d fold_0": ""})
    failed = planned.failure(jobs[f"train {NAMES[2]}__nnUNetPlans__2d fold_0"])
    failed.parent.mkdir(parents=True)
    failed.write_text("RuntimeError: no memory\n")
    found = status(capsys, file)
    name = "__nnUNetPlans__2d fold_"
    assert found == {
        f"{NAMES[0]}{name}0": "done",
        f"{NAMES[0]}{name}1": "running: epoch 5 of 10, 6 min to go",
        f"{NAMES[1]}{name}0": "failed: it ended without a word, epoch 5 of 10",
        f"{NAMES[1]}{name}1": "failed: it ended without a word, epoch 10 of 10",
        f"{NAMES[2]}{name}0": "failed: RuntimeError: no memory",
        f"{NAMES[2]}{name}1": "missing",
        f"{NAMES[3]}{name}0": "missing",
        f"{NAMES[3]}{name}1": "missing",
        "compare": "missing",
    }


def test_a_training_that_a_process_is_at_runs_whoever_began_it_and_however_old_its_log_is(file, folders, capsys):
    plan(folders)
    planned = study.Planned(study_file.make_study(study_file.read_toml(file), where="x", name="small"))
    due = planned.due()
    held, first, long_ago = (fold_of(folders, name, k) for name, k in ((NAMES[0], 0), (NAMES[0], 1), (NAMES[1], 0)))
    for fold, age in ((held, 9000), (first, 900), (long_ago, 9000)):
        log = log_epochs(fold, 0 if fold != held else 4)
        os.utime(log, (time.time() - age,) * 2)
    keys = [planned.key(job) for job in planned.jobs if job.stage == "train"]
    planned.remember({keys[0]: ""})
    name = f"{NAMES[0]}__nnUNetPlans__2d fold_"
    # One of ours that was killed has let go, however young its log is.
    (fold_of(folders, NAMES[1], 1) / "in_use.lock").touch()
    log_epochs(fold_of(folders, NAMES[1], 1), 3)
    with held_elsewhere(held / "in_use.lock", "train"):
        assert status(capsys, file)[f"{name}0"] == "running: epoch 5 of 10, 6 min to go"
        assert [planned.key(job) for job in planned.split(due)[1]] == keys[:2]
        planned.remember({keys[0]: "8_0"})
        assert [planned.key(job) for job in planned.split(due, {"8_0": "RUNNING"})[1]] == [keys[1]], "it is our own"
        assert [planned.key(job) for job in planned.split(due, {"9": "RUNNING"})[1]] == keys[:2]
    assert status(capsys, file)[f"{name}0"] == "failed: it ended without a word, epoch 5 of 10"
    assert [planned.key(job) for job in planned.split(due)[1]] == [keys[1]], "its first epoch may take this long"


def test_the_folds_of_a_comparison_are_those_that_keep_cases_apart(file, folders, capsys):
    def compared(*folds: object) -> str:
        return commands_in(dry_run(capsys, "run", file, "--folds", *folds))[-1]

    assert " --folds 0 1 " in compared(0, 1, "all")
    assert " --folds all " in compared("all")
    described = study_file.make_study({**study_file.read_toml(file), "folds": [0, "all"]}, where="x", name="small")
    planned = study.Planned(described)
    for job in planned.jobs:
        if job.stage == "train" and job.fold == "0":
            finish(fold_of(folders, job.trainer))
    plan(folders)
    assert [step.command[1] for step in planned.steps(planned.jobs[-1])] == ["compare"], "fold all is not needed"
    of_all = [job for job in planned.jobs if job.fold == "all"]
    assert planned.needs(planned.jobs[-1], planned.jobs[1:2])
    assert not planned.needs(planned.jobs[-1], of_all)


def python(code: str, title: str = "do it") -> first_run.Step:
    return first_run.Step(title, (Path(sys.executable).name, "-c", code))


def test_one_that_fails_is_reported_and_the_others_are_done(file, folders, monkeypatch, capsys):
    plan(folders)
    planned = study.Planned(study_file.make_study(study_file.read_toml(file), where="x", name="small"))

    def steps(self, job, *, dry_run=False):
        failing = job.trainer == NAMES[1] and job.fold == "0"
        yield python(
            "print('working')" + "; raise SystemExit('out of luck')" * failing, f"train {job.trainer} {job.fold}"
        )

    due = [job for job in planned.jobs if job.stage == "train"]
    with monkeypatch.context() as patch:
        patch.setattr(study.Planned, "steps", steps)
        words = f"1 of 8 job.s. failed, the first is train {NAMES[1]}__nnUNetPlans__2d fold_0"
        with pytest.raises(UserError, match=words):
            study.run_here(planned, due)
    assert capsys.readouterr().out.count("$ python") == 8
    assert status(capsys, file)[f"{NAMES[1]}__nnUNetPlans__2d fold_0"] == "failed: out of luck"
    assert study.running_here(planned.folder) is None


def test_a_study_runs_here_once_at_a_time_and_says_which_job_it_is_at(file, folders, capsys):
    planned = study.Planned(study_file.make_study(study_file.read_toml(file), where="x", name="small"))
    planned.folder.mkdir(parents=True)
    job = planned.jobs[1]
    with held_elsewhere(planned.folder / study.LOCK, planned.key(job)) as other:
        assert study.running_here(planned.folder) == Holder(socket.gethostname(), other.pid, planned.key(job))
        assert status(capsys, file)[f"{NAMES[0]}__nnUNetPlans__2d fold_0"] == "running: before its first epoch"
        with pytest.raises(UserError, match=f"runs already, as process {other.pid} of .*, which is at: train"):
            study.run_here(planned, [job])
    assert study.running_here(planned.folder) is None


# Shards


@pytest.fixture
def shards(folders, tmp_path) -> Shards:
    """Five scans in two shards; what predicts them writes the scan's label map."""
    model = fold_of(folders).parent
    raw = folders.raw / small_dataset.NAME
    (model / "dataset.json").write_text((raw / "dataset.json").read_text())
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"weights")
    return Shards(model, raw / "imagesTr", tmp_path / "out", ("0",), 2, "cpu")


class Predicting(Shards):
    """Writes what is missing, but dies on a case once, or always."""

    dies, deaths = "", 0

    def step(self, shard):
        stock = super().step(shard)
        assert stock.command[0] == "nnUNetv2_predict"
        labels, folder = self.images.with_name("labelsTr"), self.staged / str(shard)
        code = f"""
import shutil
from pathlib import Path
folder, died = Path({str(folder)!r}), Path({str(self.staged / "died")!r})
folder.mkdir(exist_ok=True)
(folder / "plans.json").write_text("{{}}")
for case in {self.cases[shard :: self.number]!r}:
    if (folder / f"{{case}}.nii.gz").exists():
        continue
    shutil.copy(Path({str(labels)!r}) / f"{{case}}.nii.gz", folder)
    if case == {self.dies!r} and (not died.exists() or {self.deaths} > 1):
        died.touch()
        content = (folder / f"{{case}}.nii.gz").read_bytes()
        (folder / f"{{case}}.nii.gz").write_bytes(content[:len(content) // 2])
        raise SystemExit("died")
"""
        return python(code, stock.title)


def test_shards_are_dealt_out_as_nnunet_does(shards):
    assert [shards.cases[shard::2] for shard in (0, 1)] == [["ball_0", "ball_2", "ball_4"], ["ball_1", "ball_3"]]
    step = shards.step(1)
    assert step.typed.startswith(f"nnUNet_results={shards.model.parent.parent} nnUNetv2_predict -i {shards.images} ")
    assert (
        f" -d Dataset998_Balls -tr {NAMES[0]} -p nnUNetPlans -c 2d -f 0 -device cpu -num_parts 2 -part_id 1 "
        in step.typed
    )
    assert "--continue_prediction" in step.typed


def test_a_shard_that_died_is_run_again_and_half_a_file_is_not_taken_for_a_whole_one(shards):
    mine = Predicting(**vars(shards))
    Predicting.dies, Predicting.deaths = "ball_2", 1
    mine.begin()
    with pytest.raises(first_run.StepFailed):
        mine.predict(0)
    assert mine.missing(0) == ["ball_2", "ball_4"]
    assert not mine.is_done
    mine.gather()
    assert mine.is_done
    assert sorted(path.name for path in mine.out.iterdir()) == [
        *(f"ball_{case}.nii.gz" for case in range(5)),
        "plans.json",
        first_run.PREDICTED_BY,
    ]


def test_a_prediction_is_run_by_one_process_at_a_time(folders, tmp_path, capsys):
    model = small_model.write_model(folders.results / small_dataset.NAME, 3, [16, 16, 16])
    images, out = folders.raw / small_dataset.NAME / "imagesTr", tmp_path / "out"
    words = ("predict", model, images, out, "--device", "cpu")
    assert main(["study", *map(str, words), "--dry-run"]) == 0
    shards = Shards(model, images, out, ("0",), 1, "cpu")
    shards.begin()  # by the other
    before = (shards.staged / first_run.PREDICTED_BY).read_bytes()
    capsys.readouterr()
    with held_elsewhere(shards.staged / "local.lock", "predict") as other:
        line = refused(capsys, *words)
    assert f"process {other.pid} of " in line
    assert "is at this prediction already: wait for its end" in line
    assert (shards.staged / first_run.PREDICTED_BY).read_bytes() == before
    assert {path.name for path in shards.staged.iterdir()} == {"local.lock", first_run.PREDICTED_BY}


def test_how_far_a_shard_is_does_not_depend_on_reading_it(shards, monkeypatch):
    """SLURM gives two minutes, in which some eighty large volumes can be read."""
    job, all_of_it = (Shard(shards, number) for number in (1, None))
    before = job.reached(), all_of_it.reached()
    (shards.staged / "1").mkdir(parents=True)
    (shards.staged / "1" / "ball_1.nii.gz").write_bytes(b"whole or not")
    assert job.reached() != before[0]
    assert all_of_it.reached() != before[1]


def test_cases_that_are_missing_are_named_and_nothing_is_there(shards):
    mine = Predicting(**vars(shards))
    Predicting.dies, Predicting.deaths = "ball_3", 9
    mine.begin()
    with pytest.raises(UserError, match="1 of 5 case.s. are missing: ball_3; .* the same command does the rest"):
        mine.gather()
    assert [path.name for path in mine.out.iterdir()] == [".shards"]
    Predicting.deaths = 1
    mine.gather()
    assert mine.is_done


def test_a_target_with_something_else_is_refused(shards, tmp_path, capsys):
    shards.out.mkdir()
    (shards.out / "x").touch()
    words = ("predict", shards.model, shards.images, shards.out, "--device", "cpu")
    line = refused(capsys, *words)
    assert "plans.json" in line
    assert f"there is no folder {tmp_path / 'no'}" in refused(capsys, "predict", tmp_path / "no", shards.images, "x")


# The pages, and everything for real


@pytest.mark.parametrize("page", ["how-to/study.md", "reproduce.md"])
def test_the_studies_on_the_pages_can_be_read(page, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) >= 3
    for block in blocks:
        (tmp_path / "x.toml").write_text(block)
        content = {"dataset": 1, "trainers": TRAINERS[0], **study_file.read_toml(tmp_path / "x.toml")}
        found = study_file.make_study(content, where="x", name="x")
        for options in found.derive.values():
            plans.check_knobs(options["set"])
        assert set(found.derive) <= set(found.configurations)


@pytest.mark.slow
def test_a_study_runs_to_its_comparison_and_its_models_predict_in_shards(planned, tmp_path):
    own = planned.copied_to(tmp_path / "nnunet")
    own.configure("2d_narrow", "2d_stock", "--keep-network", num_epochs=1, num_iterations_per_epoch=2)
    words = (
        "-d",
        own.number,
        "-c",
        "2d_stock",
        "--trainers",
        *TRAINERS,
        "--folds",
        0,
        1,
        "--seeds",
        1,
        "--device",
        "cpu",
    )
    scans, labels = (own.folders.raw / own.dataset / name for name in ("imagesTr", "labelsTr"))
    predict = f'[predict]\nimages = "{scans}"\nreferences = "{labels}"\n'
    (tmp_path / "small.toml").write_text(predict)
    words = (tmp_path / "small.toml", *words)
    own.run("logvmamba", "study", "run", *words, "--name", "small")
    folder = own.folders.results / own.dataset / "studies" / "small"
    page = (folder / "tables" / "comparison.md").read_text()
    assert all(f"| {name} |" in page for name in ("NoSSM", "StockNetwork"))
    page = (folder / "tables_held_out" / "comparison.md").read_text()
    assert "held-out cases, predicted with folds 0, 1; runs: NoSSM 1, StockNetwork 1." in page
    assert "trainings: 4 done" in own.run("logvmamba", "study", "status", *words, "--name", "small").stdout
    again = own.run("logvmamba", "study", "resume", *words, "--name", "small").stdout
    assert "0 of 4 training(s) to do, 0 job(s) in all" in again
    model, images = own.model("2d_stock", f"{TRAINERS[0]}_seed1"), own.folders.raw / own.dataset / "imagesTr"
    predict = ("logvmamba", "study", "predict", model, images, tmp_path / "out", "--shards", 4, "--device", "cpu")
    own.run(*predict)
    cases = sorted(path.name for path in (own.folders.raw / own.dataset / "labelsTr").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == cases
    assert f"nothing to do: {len(cases)} case(s) are predicted" in own.run(*predict).stdout
