"""Training with ``-num_gpus 2``: nnU-Net's own way, with gloo and the CPU where it takes NCCL and GPUs."""

import json
import os
import sys
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_dataset
import torch
from commands import NnunetFolders
from nnunetv2.run import run_training
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.layers import DropPath
from nnunet_logvmamba.plugin.trainers import recipe_trainer
from nnunet_logvmamba.plugin.trainers.weights import bare_network

CPU = torch.device("cpu")
LOG = "nnUNetTrainerLoGVMamba_sgd_seed1"
DICE = ("of_patches", "of_batch")
CASES = [(trainer, dice) for trainer in (LOG, "nnUNetTrainerUMambaEnc_sgd_seed1") for dice in DICE]
SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of nnU-Net; two configurations take the Dice loss of every patch and that of the whole batch, of four."""
    found = NnunetFolders.below(tmp_path_factory.mktemp("two_gpus"))
    file = small_dataset.copy_into(found)
    content = json.loads(file.read_text())
    for name in DICE:
        configuration = content["configurations"][name] = deepcopy(content["configurations"]["3d_fullres"])
        configuration["patch_size"] = [16] * 3
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [16, 16, 32]
        configuration["batch_size"], configuration["batch_dice"] = 4, name == "of_batch"
        configuration["logvmamba"] = SHORT
    file.write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


def make(trainer: str, configuration: str):
    return run_training.get_trainer_from_args(small_dataset.NUMBER, configuration, "all", trainer, device=CPU)


def step(trainer, batch: dict) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients of nnU-Net's training step, by the names of the weights, and the loss."""
    for module in trainer.network.modules():
        if isinstance(module, DropPath):
            module.eval()  # each process draws for itself what it drops
    loss = trainer.train_step(batch)["loss"]
    named = bare_network(trainer).named_parameters()
    return {name: torch.zeros_like(weight) if weight.grad is None else weight.grad for name, weight in named}, loss


def join(rank: int, root: Path, monkeypatch) -> None:
    """Put something into the place of all that a CPU has not: NCCL, devices by number, networks that lie on one."""
    os.environ.update(NnunetFolders.below(root).environment, nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1")
    torch.set_num_threads(1)
    begin, parallel = distributed.init_process_group, stock.DDP

    def begin_with_gloo(_, **about):
        begin("gloo", init_method=f"file://{root}/meeting", timeout=timedelta(minutes=10), **about)

    monkeypatch.setattr(distributed, "init_process_group", begin_with_gloo)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(stock, "DDP", lambda network, device_ids: parallel(network))
    monkeypatch.setattr(stock.nnUNetTrainer, "device", property(lambda _: CPU, lambda *_: None), raising=False)
    monkeypatch.setattr(recipe_trainer, "_refuse_absent_device", lambda device: None)


def take_steps(rank: int, root: Path) -> None:
    """In one of two processes: a step of each case, in float64, on this process's share of the batch."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        join(rank, root, monkeypatch)
        parallel, found = stock.DDP, {}
        monkeypatch.setattr(stock, "DDP", lambda network, device_ids: parallel(network.double(), device_ids))
        run_training.setup_ddp(rank, 2)
        for case in CASES:
            trainer = make(*case)
            trainer.initialize()
            trainer.on_train_epoch_start()
            share = slice(rank * trainer.batch_size, (rank + 1) * trainer.batch_size)
            batch = torch.load(root / f"{' '.join(case)}.batch")
            target = [scale[share] for scale in batch["target"]]
            gradients, loss = step(trainer, {"data": batch["data"][share], "target": target})
            found[case] = gradients, float(loss), list(map(float, trainer.loss.weight_factors))
        torch.save(found, root / f"rank_{rank}")
        run_training.cleanup_ddp()


@pytest.fixture(scope="module")
def steps(folders):
    """By case: a trainer before its first step, its batch, and what two processes made of it."""
    root, trainers = folders.raw.parent, {}
    for case in CASES:
        trainer = make(*case)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        trainer.network.double()
        drawn = next(trainer.dataloader_train)
        batch = {"data": drawn["data"].double(), "target": drawn["target"]}
        torch.save(batch, root / f"{' '.join(case)}.batch")
        trainers[case] = trainer, batch
    torch.multiprocessing.spawn(take_steps, (root,), nprocs=2)
    found = [torch.load(root / f"rank_{rank}") for rank in range(2)]
    return {case: (*trainers[case], found[0][case], found[1][case]) for case in CASES}


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all gradients, by the norm of all gradients."""
    assert ours.keys() == theirs.keys()
    apart = sum((ours[name] - gradient).square().sum() for name, gradient in theirs.items())
    return float(apart / sum(gradient.square().sum() for gradient in theirs.values())) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_gradients_of_two_processes_are_those_of_one_at_the_same_batch(case, steps):
    trainer, batch, *ranks = steps[case]
    (gradients, loss, weights), (again, other_loss, _) = ranks
    assert all(torch.equal(gradients[name], again[name]) for name in gradients)
    start = deepcopy(trainer.network.state_dict())
    alone, whole = step(trainer, batch)
    # With several GPUs and no torch.compile, nnU-Net weighs the coarsest output by 1e-6, where one GPU leaves it out.
    assert weights == pytest.approx([1, 1e-6], rel=1e-5)
    assert difference(alone, gradients) < 1e-6
    assert whole == pytest.approx((loss + other_loss) / 2, rel=1e-6)
    trainer.network.load_state_dict(start)
    trainer.loss.weight_factors = weights
    # nnU-Net sums for its Dice in float32, over the batch in another order.
    assert difference(step(trainer, batch)[0], gradients) < (1e-12 if case[1] == "of_patches" else 1e-7)


def train(rank: int, root: Path) -> None:
    """In one of two processes: all that ``nnUNetv2_train ... -num_gpus 2`` does in it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        join(rank, root, monkeypatch)
        run_training.run_ddp(
            rank,
            small_dataset.NUMBER,
            "of_batch",
            "all",
            LOG,
            "nnUNetPlans",
            False,
            False,
            False,
            None,
            False,
            False,
            2,
        )


@pytest.mark.slow
def test_two_processes_train_and_validate_and_one_goes_on_with_what_they_left(folders):
    root = folders.raw.parent
    (root / "meeting").unlink(missing_ok=True)
    torch.multiprocessing.spawn(train, (root,), nprocs=2)
    fold = folders.results / small_dataset.NAME / f"{LOG}__nnUNetPlans__of_batch" / "fold_all"
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 5
    record = json.loads((fold / "logvmamba.json").read_text())
    assert (record["epochs_done"], record["device"]["count"], record["batch_size"]) == (2, 2, 4)
    trainer = make(LOG, "of_batch")
    trainer.load_checkpoint(str(fold / "checkpoint_final.pth"))
    assert trainer.current_epoch == 2
    assert len(trainer.logger.get_value("train_losses", None)) == 2


@pytest.fixture
def ranks():
    """Be one of so many processes, without the others."""

    def become(rank: int, count: int) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        distributed.init_process_group("fake", rank=rank, world_size=count, store=FakeStore())

    yield become
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("batch", "forced"),
    [(2, [[0], [1]]), (4, [[0, 0], [0, 1]]), (6, [[0, 0, 0], [0, 1, 1]]), (4, [[0], [0], [0], [1]])],
)
def test_processes_place_the_patches_on_foreground_that_one_would(batch, forced, ranks):
    found = []
    for rank in range(len(forced)):
        ranks(rank, len(forced))
        trainer = SimpleNamespace(
            is_ddp=True, oversample_foreground_percent=0.33, configuration_manager=SimpleNamespace(batch_size=batch)
        )
        stock.nnUNetTrainer._set_batch_size_and_oversample(trainer)
        found.append([nnUNetDataLoader._oversample_last_XX_percent(trainer, i) for i in range(trainer.batch_size)])
    assert found == forced
    alone = SimpleNamespace(batch_size=batch, oversample_foreground_percent=0.33)
    assert sum(found, []) == [nnUNetDataLoader._oversample_last_XX_percent(alone, i) for i in range(batch)]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "batch"), [(3, 6), (8, 8)])
def test_a_batch_that_cannot_be_shared_equally_is_refused(count, batch, ranks, folders, monkeypatch):
    """nnU-Net gathers the parts of the batch's Dice as if they had one shape, and else weighs patches unequally."""
    ranks(0, count)
    before = set(folders.results.rglob("*"))
    with pytest.raises(Refused) as end:
        make(LOG, "of_batch")
    assert str(end.value) == (
        f"Configuration 'of_batch' has 4 patches in a batch, which {count} GPUs cannot share equally: write one with "
        f"logvmamba plans --keep-network --batch-size {batch}, or train with another -num_gpus."
    )
    assert set(folders.results.rglob("*")) == before
    if count <= 4:  # nnU-Net wants a patch for each
        monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "998", "of_batch", "0", "--val", "-num_gpus", str(count)])
        make(LOG, "of_batch")  # which shares no batch
