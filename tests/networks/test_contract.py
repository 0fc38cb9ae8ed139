"""What every network of the catalogue promises to nnU-Net's plans and trainers, in 2D, in 3D and with thick slices.

A new network adds its row to the catalogue and, if it is large, what makes it small here.
"""

import copy
import json
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from small_model import planned_architecture

from nnunet_logvmamba.errors import NotFiniteError
from nnunet_logvmamba.networks import LoGVMambaUNet, catalogue, prediction
from nnunet_logvmamba.networks.costs import summarize
from nnunet_logvmamba.plugin import plans

CHANNELS, CLASSES = 2, 3
# strides, kernels, a patch and another one
PLANS = {
    "2D": ([[1, 1], [2, 2], [2, 2]], [[3, 3]] * 3, (32, 48), (48, 20)),
    "3D": ([[1, 1, 1], [2, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 3, (8, 24, 12), (24, 8, 8)),
    "anisotropic": ([[1, 1, 1], [1, 2, 2], [1, 2, 2]], [[1, 3, 3], [1, 3, 3], [3, 3, 3]], (5, 16, 24), (3, 32, 16)),
}
SMALL = {
    "LoGVMambaSwinUNet": {
        "n_stages": 3,
        "strides": [[1, 1], [4, 4], [2, 2]],
        "features_per_stage": [8, 8, 16],
        "n_blocks_per_stage": [1, 1],
        "n_blocks_per_stage_decoder": 1,
    },
    "UNETR": {"feature_size": 4, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2},
    "SwinUNETR": {"feature_size": 12, "drop_rate": 0.0},
    "NestedFormer": {"features": [4, 4, 4, 4, 8, 4], "num_tokens": 2, "num_blocks": 1},
    "EoFormer": {"features": [4, 4, 32, 32], "n_blocks_per_stage": [1, 1, 1, 1]},
    "SegMamba": {"features_per_stage": [4, 4, 8, 8], "n_blocks_per_stage": [1, 2, 1, 1], "hidden_size": 8},
    "SwinUMamba": {
        "strides": [[1, 1], [2, 2], [4, 4]],
        "features_per_stage": [6, 8, 16],
        "n_blocks_per_stage": [1, 1],
    },
}
LONGER = {"SwinUNETR": 33}
"""Least length of the last axis, for networks that would find these patches too small."""
SLOW = [("SwinUNETR", "3D"), ("SwinUNETR", "anisotropic")]
SLOW_TO_TRACE = ("UNETR", "SwinUNETR", "NestedFormer", "SegMamba")


def promises(slow: Callable[[str, str], bool]) -> pytest.MarkDecorator:
    """Every network with every plan that it takes; those that are slow belong to the slow part."""
    return pytest.mark.parametrize(
        ("network", "plan"),
        [
            pytest.param(
                network,
                plan,
                id=f"{network.name}-{plan}",
                marks=pytest.mark.slow if (network.name, plan) in SLOW or slow(network.name, plan) else (),
            )
            for network in catalogue.NETWORKS
            for plan, (strides, *_) in PLANS.items()
            if len(strides[0]) in network.dims
        ],
    )


every_network = pytest.mark.parametrize("network", catalogue.NETWORKS, ids=lambda network: network.name)
every_network_and_plan = promises(slow=lambda name, plan: False)
every_network_and_plan_traced = promises(slow=lambda name, plan: name in SLOW_TO_TRACE or plan == "anisotropic")


def size(network: catalogue.Network, plan: str, other: bool = False) -> tuple[int, ...]:
    """Voxels per axis of the plan's patch, or of the other one."""
    *sides, last = PLANS[plan][3 if other else 2]
    return (*sides, max(last, LONGER.get(network.name, 1)))


def planned(plan: str) -> dict:
    """A small U-Net as nnU-Net plans it, as it stands in JSON."""
    strides, kernels, *_ = PLANS[plan]
    architecture = planned_architecture(len(strides[0]), len(strides))
    architecture["arch_kwargs"].update(strides=strides, kernel_sizes=kernels)
    return json.loads(json.dumps(architecture))


def ours(network: catalogue.Network, plan: str, **knobs) -> dict:
    knobs = SMALL.get(network.name, {}) | knobs
    if "drop_path" in plans.knobs(network.path):
        knobs = {"drop_path": 0.0} | knobs  # a dropped branch has a gradient of zero, as it should
    return plans.to_our_architecture(planned(plan), size(network, plan), network.path, **knobs)


def build(network: catalogue.Network, plan: str, deep_supervision: bool = True, **knobs) -> torch.nn.Module:
    """The network as trainers and ``nnUNetv2_predict`` build it."""
    entry = {"architecture": ours(network, plan, **knobs), "patch_size": size(network, plan)}
    manager = ConfigurationManager(json.loads(json.dumps(entry)))
    return plans.build_network(manager, CHANNELS, CLASSES, deep_supervision)


def image(network: catalogue.Network, plan: str, other: bool = False) -> torch.Tensor:
    return torch.randn(2, CHANNELS, *size(network, plan, other))


def targets(network: catalogue.Network, plan: str) -> list[tuple[int, ...]]:
    """Shapes of nnU-Net's deep-supervision targets, as its trainer and its transform make them."""
    patch = size(network, plan)
    if not network.load().deep_supervised:
        return [(2, CLASSES, *patch)]
    strides = ours(network, plan)["arch_kwargs"]["strides"]
    trainer = SimpleNamespace(
        enable_deep_supervision=True, configuration_manager=SimpleNamespace(pool_op_kernel_sizes=strides)
    )
    transform = DownsampleSegForDSTransform(nnUNetTrainer._get_deep_supervision_scales(trainer))
    found = transform(segmentation=torch.zeros(1, *patch))["segmentation"]
    return [(2, CLASSES, *target.shape[1:]) for target in found]


def scales(outputs: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs, finest first, of which a network that is not deeply supervised has one."""
    return [outputs] if isinstance(outputs, torch.Tensor) else outputs


def same(one: object, other: object) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_network
def test_the_row_says_what_the_class_says(network):
    found = network.load()
    assert (found.__name__, found.dims, found.pretrainable) == (network.name, network.dims, bool(network.weights))
    assert catalogue.row(network.name) is catalogue.row(network.path) is network
    if network.preset is not None:
        with torch.device("meta"):
            published = found(**found.preset["arguments"])
        assert sum(parameter.numel() for parameter in published.parameters()) == network.parameters
        assert len(found.preset["patch_size"]) in network.dims


@every_network_and_plan
def test_every_scale_has_the_shape_of_its_target_and_every_parameter_gets_a_gradient(network, plan):
    built, patch = build(network, plan), image(network, plan)
    outputs = scales(built(patch))
    assert [tuple(output.shape) for output in outputs] == targets(network, plan)
    assert all(output.isfinite().all() for output in outputs)
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    learning = [(name, p) for name, p in built.named_parameters() if p.requires_grad]
    lonely = [name for name, p in learning if p.grad is None or not p.grad.abs().sum() > 0]
    assert not lonely


@every_network_and_plan
def test_deep_supervision_is_switched_where_nnunet_switches_it_and_all_weights_stay(network, plan):
    built, single = build(network, plan).eval(), build(network, plan, deep_supervision=False).eval()
    single.load_state_dict(built.state_dict(), strict=True)
    patch = image(network, plan)
    with torch.no_grad():
        finest = scales(built(patch))[0]
        if network.load().deep_supervised:
            built.decoder.deep_supervision = False
        assert torch.equal(built(patch), finest)
        assert torch.equal(single(patch), finest)


@every_network_and_plan
def test_one_checkpoint_fits_every_patch_where_the_network_says_so(network, plan):
    built = build(network, plan).eval()
    if not network.load().any_patch:
        pytest.skip(f"{network.name} has weights for its patch alone")
    with torch.no_grad():
        for other in (False, True):
            assert scales(built(image(network, plan, other)))[0].shape[2:] == image(network, plan, other).shape[2:]


@every_network_and_plan
def test_the_finest_head_alone_ignores_deep_supervision_and_checkpointing_changes_no_gradient(network, plan):
    patch = image(network, plan)
    if "seg_heads" in plans.knobs(network.path):
        built = build(network, plan, deep_supervision=False, seg_heads="last").eval()
        built.decoder.deep_supervision = True  # nnU-Net leaves it on after its validation
        with torch.no_grad():
            assert built(patch).shape == (2, CLASSES, *size(network, plan))
    if "checkpointing" in plans.knobs(network.path):
        plain, saving = build(network, plan), build(network, plan, checkpointing=True)
        saving.load_state_dict(plain.state_dict())
        for built in (plain, saving):
            sum(output.square().sum() for output in built(patch)).backward()
        for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-4 * one.grad.abs().max().item()), name


@every_network_and_plan
def test_copies_and_pickles_give_the_same_outputs(network, plan):
    built, patch = build(network, plan).eval(), image(network, plan)
    with torch.no_grad():
        outputs = built(patch)
        assert same(copy.deepcopy(built)(patch), outputs)
        assert same(pickle.loads(pickle.dumps(built))(patch), outputs)


@every_network_and_plan
def test_shapes_and_costs_are_known_without_memory(network, plan):
    with torch.device("meta"):
        built = build(network, plan)
        outputs = scales(built(torch.empty(2, CHANNELS, *size(network, plan))))
    assert all(output.is_meta for output in outputs)
    assert [tuple(output.shape) for output in outputs] == targets(network, plan)
    summary = summarize(built, CHANNELS, size(network, plan), batch_size=2)
    assert summary.parameters == sum(parameter.numel() for parameter in build(network, plan).parameters())
    assert summary.parameters == sum(row.parameters for row in summary.rows)
    assert summary.multiply_adds == sum(row.multiply_adds for row in summary.rows) > 0
    assert not network.load().deep_supervised or built.decoder.deep_supervision is True


@every_network_and_plan
def test_one_patch_is_predicted_as_torch_itself_would(network, plan):
    built, patch = build(network, plan).eval(), image(network, plan)[:1]
    with torch.no_grad():
        assert prediction.predicts_one_patch(built, patch)
        outputs = scales(built(patch))
        with mock.patch.object(prediction, "predicts_one_patch", return_value=False):
            expected = scales(built(patch))
    for one, other in zip(outputs, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-4 * other.abs().max().item())


@every_network_and_plan_traced
def test_it_compiles_without_a_graph_break(network, plan):
    # In double precision, since kernels that are compiled round otherwise than those that are called.
    built, patch = build(network, plan).eval().double(), image(network, plan).double()
    torch._dynamo.reset()
    compiled = torch.compile(built, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for one, other in zip(built(patch), compiled(patch), strict=True):
            assert torch.allclose(one, other, atol=1e-9)


@every_network_and_plan
def test_numbers_that_are_not_finite_are_refused_in_evaluation_and_in_weights(network, plan):
    built, patch = build(network, plan), image(network, plan)
    patch[1, 1].view(-1)[:2] = float("inf")
    assert not scales(built(patch))[0][1].isfinite().all()  # a training has its own ways
    for supervised in (True, False):
        if network.load().deep_supervised:
            built.decoder.deep_supervision = supervised
        with pytest.raises(NotFiniteError, match=r"The image holds .* \(2 in channel 1, of \d+ per channel\)"):
            built.eval()(patch)
    weights = built.state_dict()
    last = list(weights)[-1]
    weights[last] = torch.full_like(weights[last], float("nan"))
    with pytest.raises(NotFiniteError, match=f"{weights[last].numel()} of {weights[last].numel()} in '{last}'"):
        built.load_state_dict(weights)


class Pair(NamedTuple):
    logits: torch.Tensor
    maps: torch.Tensor


@pytest.mark.parametrize("kind", [list, tuple, lambda values: Pair(*values)], ids=["list", "tuple", "named"])
@pytest.mark.parametrize("training", [True, False])
def test_a_network_of_the_users_own_takes_further_arguments_and_returns_what_it_likes(kind, training):
    class Scaled(LoGVMambaUNet):
        def forward(self, x, scale=1.0, *, shift=0.0):
            maps = self.encoder(x)
            return kind((scale * self.decoder(maps) + shift, maps[-1]))

    network = Scaled.from_channels(2, 1, 2, (4, 4), family="no_ssm", drop_path=0.0).train(training)
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        plain, scaled = network(x), network(x, 2.0, shift=1.0)
    assert type(plain) is type(scaled) is type(kind((0, 1)))
    assert torch.allclose(scaled[0], 2 * plain[0] + 1)
    assert torch.equal(scaled[1], plain[1])


@every_network_and_plan_traced
def test_nothing_is_refused_in_a_graph_that_is_exported(network, plan):
    built = build(network, plan, deep_supervision=False).eval()
    patch = image(network, plan)
    patch[0, 0].view(-1)[0] = float("nan")
    exported = torch.export.export(built, (patch,))
    assert "finite" not in str(exported.graph)


@every_network_and_plan
def test_what_it_does_not_know_is_refused_by_name(network, plan):
    with pytest.raises(ValueError, match="'no_such_argument'"):
        build(network, plan, no_such_argument=1)
    with pytest.raises(ValueError, match=f"unknown knob 'no_such_argument' of {network.name}; valid are "):
        plans.check_knobs({"no_such_argument": 1}, network.path)
    with pytest.raises(ValueError, match=f"has 1 channel.* built for {CHANNELS}"):
        build(network, plan)(image(network, plan)[:, :1])


@every_network
@pytest.mark.parametrize("plan", ["2D", "3D"])
def test_a_plan_for_other_axes_is_refused_with_the_remedy(network, plan):
    if len(PLANS[plan][2]) not in network.dims:
        with pytest.raises(ValueError, match=f"{network.name} is a .D network and this configuration is {plan}: take "):
            ours(network, plan)


def test_a_network_that_is_not_there_or_lacks_its_package_is_named():
    with pytest.raises(ValueError, match="there is no network 'UNet'; there are LoGVMambaUNet, LoGVMambaSwinUNet"):
        catalogue.row("UNet")
    lacking = catalogue.Network("networks.Heavy", "peers.heavy", (3,), "", "", "", "", "", package="x_y")
    with pytest.raises(ValueError, match="Heavy needs x_y, which is not installed: pip install x_y"):
        lacking.load()
