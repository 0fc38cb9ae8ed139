"""What a recipe makes: groups of parameters, rates from epoch to epoch, and which of nnU-Net's losses count."""

import copy

import pytest
import torch

from nnunet_logvmamba.layers import MAMBA_DIRECTIONS, Mamba, SelectiveSSM, SkipOnly
from nnunet_logvmamba.plugin.recipes import PUBLISHED_RECIPES, RECIPES, Recipe
from nnunet_logvmamba.plugin.schedules import CosineSchedule


def rates(recipe: Recipe, epochs: int) -> list[float]:
    """Learning rates as nnU-Net steps the schedule: with the number of the epoch, at its beginning."""
    optimizer = recipe.make_optimizer(torch.nn.Linear(2, 2))
    schedule = recipe.make_schedule(optimizer, epochs)
    found = []
    for epoch in range(epochs):
        schedule.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_a_cosine_falls_from_the_first_rate_to_the_last_as_torchs_does():
    recipe = PUBLISHED_RECIPES["swin_umamba"]
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=recipe.initial_lr)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(other, 40, eta_min=1e-6)
    expected = []
    for _ in range(40):
        expected.append(other.param_groups[0]["lr"])
        other.step()
        theirs.step()
    assert rates(recipe, 40) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("epochs", "warm_up"), [(300, 50), (60, 10), (1000, 50), (3, 0), (1, 0)])
def test_a_warm_up_rises_from_above_zero_to_the_whole_rate(epochs, warm_up):
    found = rates(PUBLISHED_RECIPES["eoformer"], epochs)
    assert found[: warm_up + 1] == pytest.approx([2e-4 * (e + 1) / max(1, warm_up) for e in range(warm_up)] + [2e-4])
    assert all(one > other > 0 for one, other in zip(found[warm_up:], found[warm_up + 1 :]))


def test_a_schedule_that_is_asked_out_of_turn_gives_the_rate_of_that_epoch():
    recipe = PUBLISHED_RECIPES["nested_former"]
    optimizer = recipe.make_optimizer(torch.nn.Linear(2, 2))
    schedule = recipe.make_schedule(optimizer, 60)
    assert isinstance(schedule, CosineSchedule)
    schedule.step(40)  # as a continued training does
    assert [group["lr"] for group in optimizer.param_groups] == [rates(recipe, 60)[40]] * 2
    assert schedule.get_last_lr() == [rates(recipe, 60)[40]] * 2


@pytest.mark.parametrize("name", PUBLISHED_RECIPES)
def test_what_is_decayed_is_what_the_recipe_says(name):
    recipe = PUBLISHED_RECIPES[name]
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    decayed, kept = recipe.make_optimizer(network).param_groups
    assert (len(decayed["params"]), len(kept["params"])) == ((4, 0) if recipe.decays_all else (1, 3))
    assert (decayed["weight_decay"], kept["weight_decay"]) == (recipe.weight_decay, 0.0)
    assert decayed.get("eps", 1e-8) == (recipe.eps or 1e-8)


def layers() -> torch.nn.Module:
    return torch.nn.ModuleDict(
        {"ssm": SelectiveSSM(4, directions=2), "skip": SkipOnly(4), "mamba": Mamba(8, tuple(MAMBA_DIRECTIONS))}
    )


def loaded(network: torch.nn.Module) -> torch.nn.Module:
    other = layers()
    other.load_state_dict(network.state_dict(), assign=True)
    return other


def emptied(network: torch.nn.Module) -> torch.nn.Module:
    return network.to("meta").to_empty(device="cpu")


@pytest.mark.parametrize("other", [lambda network: network, copy.deepcopy, loaded, emptied])
def test_decays_skips_and_step_biases_of_scans_are_not_decayed_nor_are_those_of_copies(other):
    network = other(layers())
    groups = RECIPES["adam"].make_optimizer(network).param_groups
    names = {id(p): name for name, p in network.named_parameters()}
    decayed, kept = ([names[id(p)] for p in group["params"]] for group in groups)
    assert sorted(decayed + kept) == sorted(names.values())
    assert not [name for name in decayed if "_log" in name or name.endswith((".D", "dt_bias", "bias"))]
    assert [name for name in kept if name.startswith("ssm")] == ["ssm.dt_bias", "ssm.A_log", "ssm.D"]
    ends = MAMBA_DIRECTIONS.values()
    assert {f"mamba.{name}" for end in ends for name in (f"A{end}_log", f"D{end}")} < set(kept)


def test_the_mark_of_mamba_ssm_counts_as_well():
    network = torch.nn.Linear(2, 2)
    network.weight._no_weight_decay = True
    assert not RECIPES["adam"].make_optimizer(network).param_groups[0]["params"]


def test_a_record_names_what_is_not_as_usual():
    assert RECIPES["sgd"].facts() == {"optimizer": "sgd", "initial_lr": 1e-2, "weight_decay": 3e-5}
    assert PUBLISHED_RECIPES["segmamba"].facts() == {**RECIPES["sgd"].facts(), "decays_all": True, "loss": "ce"}
