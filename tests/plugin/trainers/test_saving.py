"""A checkpoint is whole or not there, and ``--c`` takes the first that is whole."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import small_dataset
import torch
from commands import NnunetFolders
from holder import held_elsewhere
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint, run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from small_model import flip

from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.plugin import trainers
from nnunet_logvmamba.plugin.checkpoint_damage import damage_of
from nnunet_logvmamba.plugin.checkpoints import CHECKPOINTS, logging_of_checkpoints, read_checkpoint
from nnunet_logvmamba.plugin.trainers import pretraining, saving

FINAL, LATEST, BEST = CHECKPOINTS
SHORT = {"num_epochs": 3, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "seed": 3}


def make_in(folders, name: str = "nnUNetTrainerStockNetwork", *, resumes: bool = False, **settings):
    """Make a trainer for patches of 16 voxels; ``resumes`` as ``--c`` does."""
    preprocessed = folders.preprocessed / small_dataset.NAME
    content = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    configuration = content["configurations"]["small"] = deepcopy(content["configurations"]["3d_fullres"])
    configuration["patch_size"] = [16, 16, 16]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 8, 8]
    configuration["logvmamba"] = {**SHORT, **settings}
    content["continue_training"] = resumes
    dataset = json.loads((preprocessed / "dataset.json").read_text())
    return getattr(trainers, name)(content, "small", 0, dataset, torch.device("cpu"))


def in_a_child(work: Callable[[], object]) -> int:
    """Do something in a process of its own, which ends with 0 unless it fails, and give its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@pytest.fixture
def make(nnunet_folders):
    small_dataset.copy_into(nnunet_folders)
    return partial(make_in, nnunet_folders)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A fold with the checkpoints of a training that was stopped in its last epoch, and that of its end; to be read."""
    folders = NnunetFolders.below(tmp_path_factory.mktemp("saved"))
    small_dataset.copy_into(folders)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in folders.environment.items():
            patch.setenv(name, value)
        trainer = make_in(folders)
        folder = Path(trainer.output_folder)
        end = trainer.on_train_end
        trainer.on_train_end = lambda: (shutil.copy(folder / LATEST, folder / "kept"), end())
        trainer.run_training()
    (folder / "kept").rename(folder / LATEST)
    return folders.results


@pytest.fixture
def fold(make, results, nnunet_folders) -> Path:
    """A copy of that fold where ``make`` makes trainers."""
    shutil.copytree(results, nnunet_folders.results, dirs_exist_ok=True)
    return next(nnunet_folders.results.rglob("fold_0"))


@pytest.fixture
def saved(make, tmp_path) -> tuple[trainers.RecipeTrainer, Path]:
    """A trainer, and what it saved alone in a folder."""
    trainer = make()
    trainer.initialize()
    (tmp_path / "alone").mkdir()
    trainer.save_checkpoint(str(tmp_path / "alone" / LATEST))
    return trainer, tmp_path / "alone" / LATEST


def names_beside(path: Path) -> list[str]:
    return sorted(other.name for other in path.parent.iterdir())


def content_of(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_the_end(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for position in range(-300, -100):
        content[position] ^= 0xFF
    path.write_bytes(content)


def replace_by_text(path: Path) -> None:
    path.write_text("Quota exceeded\n")


DAMAGES = [truncate, empty, flip, flip_the_end, replace_by_text]


def resume(make):
    """Do what ``nnUNetv2_train … --c`` does before it trains."""
    trainer = make(resumes=True)
    maybe_load_checkpoint(trainer, True, False)
    return trainer


def log_of(trainer) -> str:
    return Path(trainer.log_file).read_text()


# What is saved


def test_what_is_saved_is_whole_and_needs_nothing_but_torch_to_be_read(fold):
    for name in CHECKPOINTS:
        assert damage_of(fold / name) is None
        content = content_of(fold / name)  # without NumPy's numbers among what is allowed
        assert np.isfinite(content["logging"]["train_losses"]).all()
    assert sorted(path.name for path in fold.iterdir() if path.name.startswith(".")) == []


def test_a_killed_save_leaves_the_old_file_and_what_it_left_goes_with_the_next_one(saved):
    trainer, target = saved
    before = target.read_bytes()
    process = os.fork()
    if process == 0:
        try:
            saving.save_whole(
                trainer, str(target), lambda name: (Path(name).write_bytes(before[:500]), os.kill(os.getpid(), 9))
            )
        finally:
            os._exit(1)
    os.waitpid(process, 0)
    assert target.read_bytes() == before
    assert len(names_beside(target)) == 2
    trainer.save_checkpoint(str(target))
    assert names_beside(target) == [LATEST]


def test_what_is_damaged_on_its_way_to_the_disk_does_not_get_the_name(saved):
    trainer, target = saved
    before = target.read_bytes()

    def save_badly(filename: str) -> None:
        shutil.copy(target, filename)
        flip(Path(filename))

    with pytest.raises(Refused, match=f"{LATEST} could not be written .*checksum of its part .* is wrong"):
        saving.save_whole(trainer, str(target), save_badly)
    assert target.read_bytes() == before
    assert names_beside(target) == [LATEST]


@pytest.fixture
def limited():
    """Let no file grow beyond so many bytes, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_does_not_fit_is_one_sentence_and_keeps_the_old_file(saved, limited):
    trainer, target = saved
    before = target.read_bytes()
    limited(20_000)
    with pytest.raises(Refused) as caught:
        trainer.save_checkpoint(str(target))
    sentence = str(caught.value)
    assert sentence.startswith(f"{target} could not be written ({os.strerror(errno.EFBIG).lower()}): ")
    assert "make room" in sentence
    assert "--c" in sentence
    assert "\n" not in sentence
    assert target.read_bytes() == before
    assert names_beside(target) == [LATEST]


# What --c takes


def test_the_first_of_final_latest_and_best_is_taken_and_the_log_says_why(make, fold):
    trainer = resume(make)
    assert trainer.current_epoch == 3
    assert f"--c goes on from {FINAL}, which has 3 epoch(s) \n" in log_of(trainer)
    (fold / FINAL).unlink()
    trainer = resume(make)
    assert trainer.current_epoch == 2
    assert f"--c goes on from {LATEST}, which has 2 epoch(s); {FINAL} is not there \n" in log_of(trainer)


def test_a_training_that_was_made_longer_goes_on_from_behind_its_first_end(make, fold):
    longer = make(resumes=True, num_epochs=6)
    maybe_load_checkpoint(longer, True, False)
    longer.on_train_end = lambda: None  # killed before
    longer.run_training()
    (fold / BEST).unlink()
    trainer = resume(make)
    assert trainer.current_epoch == 5
    assert f"{LATEST}, which has 5 epoch(s); {FINAL} is of 3 epoch(s); {BEST} is not there \n" in log_of(trainer)
    assert len(logging_of_checkpoints(fold)["train_losses"]) == 5


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_in_words(damage, make, fold):
    damage(fold / FINAL)
    trainer = resume(make)
    assert trainer.current_epoch == 2
    assert f"--c goes on from {LATEST}, which has 2 epoch(s); {FINAL} is damaged (" in log_of(trainer)
    damage(fold / LATEST)
    trainer = resume(make)
    assert f"--c goes on from {BEST}, which has" in log_of(trainer)
    assert f"; {FINAL} is damaged (" in log_of(trainer)
    assert f"; {LATEST} is damaged (" in log_of(trainer)
    damage(fold / BEST)
    with pytest.raises(Refused) as caught:
        resume(make)
    sentence = str(caught.value)
    assert sentence.startswith(f"{fold} holds no whole checkpoint ({FINAL} is damaged (")
    assert "remove them to start anew" in sentence
    assert not any(word in sentence for word in ("\n", "mmap", "zip", "PytorchStreamReader"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_there_is_no_choice_a_damaged_checkpoint_is_refused_in_words(damage, make, fold):
    damage(fold / FINAL)
    trainer = make()
    with pytest.raises(Refused) as caught:
        maybe_load_checkpoint(trainer, False, True)  # --val
    assert str(caught.value).startswith(f"{fold / FINAL} is damaged (")
    assert "go on with --c" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("\n", "mmap", "zip", "PytorchStreamReader"))


def test_the_end_of_an_earlier_training_does_not_end_one_that_began_later(make, fold):
    (fold / LATEST).unlink()
    again = make(seed=4)
    again.on_train_end = lambda: None  # killed before
    again.run_training()
    trainer = resume(make)
    assert trainer.current_epoch == 2
    assert f"{LATEST}, which has 2 epoch(s); {FINAL} is of an earlier training \n" in log_of(trainer)
    losses = again.logger.get_value("train_losses", None)[:2]
    assert trainer.logger.get_value("train_losses", None) == losses
    assert logging_of_checkpoints(fold)["train_losses"] == losses  # what logvmamba report shows


def test_a_best_that_was_saved_after_the_latest_is_not_replaced_by_a_worse_one(make, fold):
    (fold / FINAL).unlink()
    latest, best = content_of(fold / LATEST), content_of(fold / BEST)
    torch.save({**latest, "_best_ema": 0.1}, fold / LATEST)
    torch.save({**best, "_best_ema": 0.9}, fold / BEST)
    assert resume(make)._best_ema == 0.9


@pytest.mark.parametrize("damaged", [(), (LATEST,)])
def test_the_losses_of_a_seeded_training_are_those_of_an_unbroken_one_wherever_it_goes_on(damaged, make, fold):
    unbroken = content_of(fold / FINAL)["logging"]["train_losses"]
    (fold / FINAL).unlink()
    for name in damaged:
        truncate(fold / name)
    trainer = resume(make)
    trainer.run_training()
    assert trainer.current_epoch == 3
    assert trainer.logger.get_value("train_losses", None) == unbroken
    assert damage_of(fold / FINAL) is None
    assert not (fold / LATEST).exists()


# What else a killed process may leave


@pytest.mark.parametrize("content", ["", '{"checkpoint": "a.pth", "loa', "[]", "{}"])
def test_half_a_report_about_the_encoder_is_named(content, tmp_path):
    path = tmp_path / pretraining.REPORT
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{pretraining.REPORT} is not .*: copy it anew") as caught:
        pretraining.continue_encoder(path, print)
    assert "\n" not in str(caught.value)


def test_a_pretrained_encoder_with_changed_bytes_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "encoder.pth"
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    monkeypatch.setenv(pretraining.VARIABLE, str(path))
    assert pretraining.checkpoint_asked_for({}) == path
    flip(path)
    with pytest.raises(ValueError, match="encoder.pth is damaged .the checksum of its part .*: fetch the file again"):
        pretraining.checkpoint_asked_for({})


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


OTHERS = {
    ("adam", "sgd"): "SGD, not Adam|Adam, not SGD",
    ("adam", "adamw"): "Adam, not AdamW|AdamW, not Adam",
    ("sgd", "adamw"): "SGD, not AdamW|AdamW, not SGD",
}


@pytest.mark.parametrize("trained", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("asked", ["adam", "adamw", "sgd"])
def test_a_training_goes_on_with_the_recipe_that_it_says_or_not_at_all(trained, asked, make):
    def trainer(optimizer: str, *, resumes: bool, decay: float):
        found = make(resumes=resumes, optimizer=optimizer, weight_decay=decay, num_epochs=2)
        found.initialize()
        return found

    before = trainer(trained, resumes=False, decay=0.1)
    latest = Path(before.output_folder) / LATEST
    before.save_checkpoint(str(latest))
    resumed = trainer(asked, resumes=True, decay=0.5)
    weights, expected = deepcopy(resumed.network.state_dict()), groups_of(resumed.optimizer)
    if trained != asked:
        words = OTHERS[tuple(sorted((trained, asked), key=("adam", "sgd", "adamw").index))]
        with pytest.raises(Refused, match=rf"trained with another optimizer than is asked for now \(({words})\)"):
            resumed.load_checkpoint(str(latest))
        for name, value in resumed.network.state_dict().items():
            assert torch.equal(value, weights[name]), name
        validating = trainer(asked, resumes=False, decay=0.5)
        validating.load_checkpoint(str(latest))
    else:
        resumed.load_checkpoint(str(latest))
        assert groups_of(resumed.optimizer) == expected
        assert expected[0]["weight_decay"] == resumed.recipe.weight_decay == 0.5
    for name, value in (validating if trained != asked else resumed).network.state_dict().items():
        assert torch.equal(value, before.network.state_dict()[name]), name


def test_other_groups_of_parameters_are_another_optimizer(make):
    before = make()
    before.initialize()
    latest = Path(before.output_folder) / LATEST
    before.save_checkpoint(str(latest))
    resumed = make(resumes=True)
    resumed.initialize()
    resumed.optimizer = replace(resumed.recipe, decays_all=True).make_optimizer(resumed.network)
    with pytest.raises(Refused, match="another optimizer than is asked for now .it decays other parameters"):
        resumed.load_checkpoint(str(latest))


@pytest.mark.parametrize("kind", [str, Path, read_checkpoint])
def test_a_checkpoint_is_loaded_by_name_path_or_content(kind, make, fold):
    resumed = make()
    resumed.load_checkpoint(kind(fold / FINAL))
    assert resumed.current_epoch == 3
    saved = read_checkpoint(fold / FINAL)["network_weights"]
    assert all(torch.equal(value, saved[name]) for name, value in resumed.network.state_dict().items())


def test_a_fold_that_another_process_is_at_is_left_alone(make, nnunet_folders):
    here = make()
    fold = Path(here.output_folder)
    here.initialize()
    with held_elsewhere(fold / "in_use.lock", "train") as other:
        before = sorted(fold.rglob("*"))
        words = rf"process {other.pid} of \S+ is at {fold} \(train\), and two would write the same files"
        with pytest.raises(Refused, match=words):
            make()
        for begin in (here.run_training, here.perform_actual_validation):
            with pytest.raises(Refused, match=words):
                begin()
        assert sorted(fold.rglob("*")) == before, "nothing was begun"
    held = []
    here.on_epoch_end = lambda: held.append((fold / "in_use.lock").read_text())
    here.num_epochs = 1
    here.run_training()
    assert [json.loads(text)[1:] for text in held] == [[os.getpid(), "train"]]
    make()


def test_half_a_file_of_folds_is_named(make, nnunet_folders):
    trainer = make()
    trainer.initialize()
    file = nnunet_folders.preprocessed / small_dataset.NAME / "splits_final.json"
    file.write_text('[{"train": ["ba')
    with pytest.raises(Refused, match=f"{file} is not valid JSON .*: copy it anew, or remove it"):
        trainer.run_training()


def test_too_few_cases_for_folds_are_refused_before_anything_is_written(make, nnunet_folders):
    home = nnunet_folders.preprocessed / small_dataset.NAME
    trainer = make()  # while there are five
    trainer.initialize()
    for file in home.glob("nnUNetPlans_*/ball_4*"):
        file.unlink()
    before = sorted(nnunet_folders.results.rglob("*"))
    said = (
        f"of 4 case.s. nnU-Net cannot make its 5 folds: train the fold all, or write .* into {home}/splits_final.json"
    )
    with pytest.raises(Refused, match=said):
        make()
    assert sorted(nnunet_folders.results.rglob("*")) == before
    with pytest.raises(Refused, match=said):
        trainer.do_split()
    trainer.fold = "all"
    assert len(trainer.do_split()[0]) == 4
    (home / "splits_final.json").write_text(json.dumps([{"train": ["ball_0", "ball_1"], "val": ["ball_2"]}]))
    assert make().do_split() == (["ball_0", "ball_1"], ["ball_2"])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_folds_that_cannot_be_written_are_said_with_what_helps(number, make, nnunet_folders, monkeypatch):
    def fail(file: Path, text: str) -> None:
        raise OSError(number, os.strerror(number), str(file))

    trainer = make()
    trainer.initialize()
    file = nnunet_folders.preprocessed / small_dataset.NAME / "splits_final.json"
    monkeypatch.setattr("nnunet_logvmamba.plugin.trainers.recording.replace_text", fail)
    with pytest.raises(Refused) as caught:
        trainer.run_training()
    said = str(caught.value)
    assert said.startswith(f"{file}, the folds that nnU-Net makes, cannot be written ({os.strerror(number)}): ")
    assert said.endswith("make room." if number == errno.ENOSPC else "where it can be, or copy it there.")
    assert not file.exists()


def test_folds_behind_a_link_to_nowhere_are_refused_in_one_sentence(make, nnunet_folders, tmp_path):
    trainer = make()
    trainer.initialize()
    file = nnunet_folders.preprocessed / small_dataset.NAME / "splits_final.json"
    file.symlink_to(tmp_path / "gone" / file.name)
    with pytest.raises(Refused, match=f"{file}, the folds that nnU-Net makes, cannot be written .No such file"):
        trainer.do_split()


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "make room"), (errno.EROFS, "put that right")])
def test_room_is_asked_for_only_where_there_is_none(number, remedy, tmp_path):
    said = f"could not be written .*: {remedy}, then go on with"
    with pytest.raises(Refused, match=said), saving.disk_in_words(tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path))


def test_folds_are_those_of_nnunet_to_the_byte(make, nnunet_folders):
    trainer = make()
    trainer.initialize()
    file = nnunet_folders.preprocessed / small_dataset.NAME / "splits_final.json"
    file.unlink(missing_ok=True)
    cases = nnUNetTrainer.do_split(trainer)
    stock = file.read_bytes()
    file.unlink()
    assert trainer.do_split() == cases
    assert file.read_bytes() == stock


def save_slowly(content: object, file: str) -> None:
    """Write JSON as to a file system that is slow: half of it is there for a while."""
    text = json.dumps(content)
    with open(file, "w") as stream:
        for part in (text[: len(text) // 2], text[len(text) // 2 :]):
            stream.write(part)
            stream.flush()
            time.sleep(0.2)


def test_trainings_that_begin_one_after_another_read_whole_folds(make, nnunet_folders, monkeypatch):
    trainer = make()
    trainer.initialize()
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.save_json", save_slowly)
    file = nnunet_folders.preprocessed / small_dataset.NAME / "splits_final.json"
    file.unlink(missing_ok=True)

    def begin_after(seconds: float) -> None:
        time.sleep(seconds)
        trainer.do_split()

    children = [in_a_child(partial(begin_after, seconds)) for seconds in (0, 0.05, 0.1, 0.15, 0.2, 0.3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
    assert [path.name for path in file.parent.iterdir() if "splits" in path.name] == [file.name]


# Killed at any moment


def train_in_a_child(continues: bool, validates: bool, log: Path) -> int:
    """Do what ``nnUNetv2_train`` does, in a process group of its own, and give its number."""

    def train() -> None:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        words = small_dataset.NUMBER, "small", 0, "nnUNetTrainerStockNetwork", "nnUNetPlans", continues
        if validates:
            run_training(*words[:5], continue_training=continues, device=torch.device("cpu"))
        else:
            trainer = get_trainer_from_args(*words, device=torch.device("cpu"))
            maybe_load_checkpoint(trainer, continues, False)
            trainer.run_training()

    return in_a_child(train)


def kill(process: int) -> None:
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)


def epochs_begun(folder: Path) -> list[list[int]]:
    """Epochs that each log opens, the oldest log first."""
    logs = sorted(folder.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime_ns)
    return [[int(number) for number in re.findall(r": Epoch (\d+)", log.read_text())] for log in logs]


EPOCHS, KILLS = 10, {"save": 9, "training": 9, "validation": 7}


@pytest.mark.slow
def test_trainings_killed_at_25_moments_end_as_an_unbroken_one(nnunet_folders, tmp_path):
    plans_file = small_dataset.copy_into(nnunet_folders)
    content = json.loads(plans_file.read_text())
    configuration = content["configurations"]["small"] = deepcopy(content["configurations"]["3d_fullres"])
    configuration["patch_size"] = [16, 16, 16]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 16, 32]
    configuration["logvmamba"] = {**SHORT, "num_epochs": EPOCHS}
    plans_file.write_text(json.dumps(content))
    model = nnunet_folders.results / small_dataset.NAME / "nnUNetTrainerStockNetwork__nnUNetPlans__small"
    fold, log, rng = model / "fold_0", tmp_path / "log.txt", random.Random(0)

    begun = time.monotonic()
    assert os.waitpid(train_in_a_child(False, False, log), 0)[1] == 0, log.read_text()[-3000:]
    lasts = time.monotonic() - begun
    unbroken = content_of(fold / FINAL)["logging"]["train_losses"]
    lost = []
    for when in [when for when, number in KILLS.items() for _ in range(number)]:
        shutil.rmtree(model)
        process = train_in_a_child(False, when == "validation", log)
        if when == "training":
            time.sleep(rng.uniform(0.2, 0.9) * lasts)
        elif when == "save":
            for _ in range(rng.randrange(1, EPOCHS)):
                while not list(fold.glob(".checkpoint_*")):
                    time.sleep(1e-4)
                number = len(list(fold.glob(".checkpoint_*")))
                while number and list(fold.glob(".checkpoint_*")) and rng.random() < 0.9:
                    time.sleep(1e-4)
        else:
            while not (fold / "validation").exists():
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 10))
        kill(process)
        stopped = epochs_begun(fold)[-1:] or [[]]
        assert os.waitpid(train_in_a_child(True, when == "validation", log), 0)[1] == 0, log.read_text()[-3000:]
        gone_on = epochs_begun(fold)[-1]
        if gone_on and stopped[0]:
            lost.append(stopped[0][-1] - gone_on[0])
        assert damage_of(fold / FINAL) is None
        assert content_of(fold / FINAL)["logging"]["train_losses"] == unbroken
        assert not list(fold.glob(".checkpoint_*"))
        if when == "validation":
            assert json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"] >= 0
    print("epochs lost:", lost)
    assert max(lost) <= 1
