"""What a training says of the memory of a GPU; the GPU is made up, all else is the real training."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import small_dataset
import torch

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.plugin import memory, plans, trainers
from nnunet_logvmamba.plugin.trainers import gpu_memory

MIB = 2**20


@pytest.fixture
def trainer(nnunet_folders):
    """A training of one step an epoch, on a small configuration."""
    file = small_dataset.copy_into(nnunet_folders)
    content = json.loads(file.read_text())
    small = content["configurations"]["small"] = dict(content["configurations"]["3d_fullres"])
    small |= {"patch_size": [16, 16, 16], "batch_size": 4}
    small["architecture"]["arch_kwargs"]["features_per_stage"] = [16, 16, 32]
    small["logvmamba"] = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    dataset = json.loads((file.parent / "dataset.json").read_text())

    def make(name: str = "nnUNetTrainerLoGVMamba", configuration: str = "small", **changes):
        small.update(changes)
        if configuration == "small":
            file.write_text(json.dumps(content))
        made = {**json.loads(file.read_text()), "continue_training": False}
        return getattr(trainers, name)(made, configuration, 0, dataset, torch.device("cpu"))

    return make


def log_of(trainer) -> str:
    return Path(trainer.log_file).read_text()


def fails(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_nothing_is_said_without_a_gpu(trainer):
    made = trainer()
    made.run_training()
    assert "GPU memory" not in log_of(made)


def test_before_the_first_epoch_the_log_says_what_a_step_needs_and_what_there_is(trainer, monkeypatch):
    monkeypatch.setattr(gpu_memory, "available", lambda device: (15 * 2**30, 16 * 2**30))
    made = trainer()
    made.run_training()
    log = log_of(made)
    found = re.search(r"GPU memory: a step is estimated at (\d\.\d\d) GiB \(.*\); 15\.00 of 16\.00 GiB can be had", log)
    assert found
    assert log.index("GPU memory") < log.index("Epoch 0")
    assert float(found[1]) == pytest.approx(gpu_memory.of_step(made).peak / 2**30, abs=0.006)
    assert "may not fit" not in log


@pytest.mark.parametrize("step", ["train", pytest.param("validation", marks=pytest.mark.slow)])
def test_out_of_memory_ends_the_training_with_what_would_fit(trainer, monkeypatch, step):
    made = trainer()
    made.initialize()
    whole = gpu_memory.of_step(made)
    less, fewer = gpu_memory.of_step(made, checkpointing=True), gpu_memory.of_step(made, 2)
    usable = int(max(less.peak, fewer.peak) * (1 + memory.ERROR)) + MIB
    assert usable < whole.peak
    monkeypatch.setattr(gpu_memory, "available", lambda device: (usable, 16 * 2**30))
    made.on_train_start()
    assert "ATTENTION: that may not fit; what would fit: " in log_of(made)
    made.network.register_forward_hook(fails)
    with pytest.raises(Refused) as raised:
        getattr(made, f"{step}_step")(next(made.dataloader_train))
    said = str(raised.value)
    assert said in log_of(made)
    assert re.match(r"Training ended in epoch 0: the GPU is out of memory, where a step is estimated at .* GiB", said)
    assert f"checkpointing, {less.peak / 2**30:.2f} GiB (logvmamba plans -d 998 -p nnUNetPlans -c small" in said
    assert "a batch of 2" in said or "a batch of 3" in said
    assert "--gpu-memory" not in said  # no card is that small
    assert said.count(". ") == 0
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)


def test_an_estimate_that_fails_does_not_hide_that_memory_is_missing(trainer, monkeypatch):
    def no_estimate(*_: object) -> None:
        raise RuntimeError("no kernel for meta")

    made = trainer()
    monkeypatch.setattr(gpu_memory, "available", lambda device: (2**30, 16 * 2**30))
    monkeypatch.setattr(gpu_memory, "of_step", no_estimate)
    told = r"out of memory, where a step cannot be estimated \(no kernel for meta\) and 1.00 of"
    with pytest.raises(Refused, match=told), gpu_memory.in_words(made):
        raise torch.OutOfMemoryError


def test_a_larger_gpu_gets_plans_for_what_it_has(trainer, monkeypatch):
    made = trainer(patch_size=[160, 160, 160])
    made.initialize()
    whole = gpu_memory.of_step(made)
    assert whole.peak > 5 * 2**30
    usable = whole.peak - 2**30
    said = gpu_memory._ways(made, whole, usable)
    card = int(re.search(r"plans for (\d+) GiB \(logvmamba plan -d 998 --gpu-memory \1\)", said)[1])
    assert memory.budget(card) < usable / (1 + memory.ERROR) < memory.budget(card + 1)


def test_what_ought_to_have_fitted_is_not_named_again(trainer):
    made = trainer(patch_size=[160, 160, 160])
    made.initialize()
    whole = gpu_memory.of_step(made)
    said = gpu_memory._ways(made, whole, 100 * 2**30)
    card = int(re.search(r"--gpu-memory (\d+)", said)[1])
    assert memory.budget(card) < whole.peak
    assert f"a batch of {made.batch_size} " not in said


def test_the_batch_that_is_named_is_that_of_all_gpus(trainer, monkeypatch):
    made = trainer("nnUNetTrainerStockNetwork", batch_size=4)
    made.initialize()
    one, whole = gpu_memory.of_step(made, 1), gpu_memory.of_step(made)
    usable = int((one.peak + (whole.peak - one.peak) / 3) * (1 + memory.ERROR) * 1.001)  # two patches
    assert "--batch-size 2)" in gpu_memory._ways(made, whole, usable)
    made.is_ddp, made.network = True, torch.nn.DataParallel(made.network)  # which has its network where DDP has it
    monkeypatch.setattr(gpu_memory.distributed, "get_world_size", lambda: 4)
    assert "a batch of 8, " in gpu_memory._ways(made, whole, usable)
    assert "--batch-size 8)" in gpu_memory._ways(made, whole, usable)


def test_nnunets_own_network_has_no_switch(trainer):
    made = trainer("nnUNetTrainerStockNetwork")
    made.initialize()
    whole = gpu_memory.of_step(made)
    said = gpu_memory._ways(made, whole, whole.peak)
    assert "checkpointing" not in said
    assert "a batch of" in said
    nothing = gpu_memory._ways(made, whole, 0)
    assert nothing.startswith("neither a smaller batch nor checkpointing would fit")


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("nnUNetTrainerLoGVMamba", ""),
        ("nnUNetTrainerUMambaEnc", " --network UMambaEnc"),
        ("nnUNetTrainerStockNetwork", None),
    ],
)
def test_the_commands_that_are_named_write_what_the_same_trainer_takes(name, network, trainer):
    made = trainer(name)
    made.initialize()
    said = gpu_memory._ways(made, replace(gpu_memory.of_step(made), peak=2**40), 12 * 2**30)
    assert re.findall(r"--gpu-memory \d+(.*?)\)", said) == ([] if network is None else [network])
    commands = re.findall(r"\(logvmamba (plans .*?)\)", said)
    assert len(commands) == (1 if network is None else 2)
    for number, command in enumerate(commands):
        assert main(command.replace("NEW", f"new_{number}").split()) == 0
        again = trainer(name, f"new_{number}")
        again.initialize()
        assert type(again.network) is type(made.network)


def test_the_switch_is_a_knob_that_plans_take(trainer):
    assert "checkpointing" in plans.knobs()
