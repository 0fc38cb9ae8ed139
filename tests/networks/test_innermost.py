"""Training on a CPU with channels innermost: the numbers are those of the common layout, and others notice nothing."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from nnunet_logvmamba.layers.recompute import nothing_recomputed
from nnunet_logvmamba.networks import LoGVMambaUNet, UMambaBot
from nnunet_logvmamba.networks.blocks import innermost
from nnunet_logvmamba.networks.blocks.norms import INSTANCE_NORMS
from nnunet_logvmamba.networks.log_vmamba import unet

LAYOUTS = innermost.CHANNELS_INNERMOST
SPATIAL = {2: (18, 16), 3: (8, 12, 10)}


def a_network(dims: int, **options) -> LoGVMambaUNet:
    torch.manual_seed(0)
    return LoGVMambaUNet.from_channels(dims, 1, 3, (16, 32), deep_supervision=True, drop_path=0.0, **options)


def step(network: nn.Module, image: torch.Tensor) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    image = image.clone().requires_grad_()
    network.zero_grad()
    outputs = network(image)
    sum(output.sin().mean() for output in outputs).backward()
    return outputs, {"image": image.grad} | {name: p.grad.clone() for name, p in network.named_parameters()}


def in_the_common_layout(monkeypatch) -> None:
    monkeypatch.setattr(unet, "trains_quickly", lambda x: False)


def lies_innermost(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=LAYOUTS[x.ndim]) and x.stride(1) == 1  # which says it of one channel, too


def layouts(network: nn.Module) -> list[bool]:
    """Whether what the blocks are given has its channels innermost, in the order of their calls."""
    found = []
    for module in network.modules():
        if type(module).__name__ == "ResidualBlock":
            module.register_forward_pre_hook(lambda _, given: found.append(lies_innermost(given[0])))
    return found


@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"nonlin_kwargs": {"negative_slope": 0.0}}], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dims", SPATIAL)
def test_a_step_has_the_outputs_and_gradients_of_the_common_layout(dims, batch, options, monkeypatch):
    network, image = a_network(dims, **options), torch.randn(batch, 1, *SPATIAL[dims])
    found = layouts(network)
    outputs, grads = step(network, image)
    assert found
    assert all(found)
    assert all(output.is_contiguous() for output in outputs)
    in_the_common_layout(monkeypatch)
    found.clear()
    others, theirs = step(network, image)
    assert not any(found)
    exact, truth = step(copy.deepcopy(network).double(), image.double())
    largest = max(grad.abs().max() for grad in truth.values())
    for one, other, right in zip(outputs, others, exact, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
        assert (one - right).abs().max() < 1e-5 * right.abs().max()
    for name, grad in grads.items():
        assert (grad - theirs[name]).abs().max() < 1e-4 * largest, name
        assert (grad - truth[name]).norm() < 1e-4 * max(truth[name].norm(), largest), name


@pytest.mark.parametrize("mean", [0, 30])
@pytest.mark.parametrize("spatial", [(24, 40), (24, 40, 24)])
def test_the_norm_is_as_exact_as_torchs_own_far_from_zero_too(spatial, mean):
    torch.manual_seed(0)
    x = torch.randn(2, 8, *spatial) + mean
    norm, nonlin = INSTANCE_NORMS[len(spatial)](8, affine=True), nn.LeakyReLU()
    nn.init.normal_(norm.weight)
    grad = torch.randn_like(x) + 1

    def of(image: torch.Tensor, norm: nn.Module, grad: torch.Tensor) -> list[torch.Tensor]:
        image.requires_grad_()
        y = innermost.normalised(image, norm, nonlin)
        return [y, *torch.autograd.grad(y, (image, norm.weight, norm.bias), grad)]

    exact, theirs = of(x.double(), copy.deepcopy(norm).double(), grad.double()), of(x.clone(), norm, grad)
    with innermost.quick_training():
        ours = of(innermost.innermost(x), norm, grad)
    for one, other, right in zip(ours, theirs, exact, strict=True):
        largest = right.abs().max()
        assert (one - right).abs().max() < max(2e-6 * largest, 5 * (other - right).abs().max())


@pytest.mark.parametrize("object_at", [None, 0, -1])
@pytest.mark.parametrize("value", [0.3, 7.3, 123.456])
@pytest.mark.parametrize("spatial", [(96, 96), (48, 48, 24)])
def test_the_norm_of_what_is_the_same_nearly_everywhere_is_exact(spatial, value, object_at):
    x = torch.full((1, 8, *spatial), value)
    if object_at is not None:
        x.flatten(2)[..., object_at] += 0.01
    exact = F.instance_norm(x.double())
    with innermost.quick_training():
        ours = innermost.normalised(innermost.innermost(x), INSTANCE_NORMS[len(spatial)](8), nn.LeakyReLU(1.0))
    assert (ours - exact).abs().max() < 1e-5 * (1 + exact.abs().max())


@pytest.mark.parametrize("dims", SPATIAL)
def test_background_alone_is_not_worse_than_in_the_common_layout(dims, monkeypatch):
    network = a_network(dims)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    image = torch.zeros(1, 1, *(48 for _ in range(dims)))
    exact = copy.deepcopy(network).double()(image.double())[0]
    ours = network(image)[0]
    in_the_common_layout(monkeypatch)
    theirs = network(image)[0]
    assert (ours - exact).abs().max() < 5 * (theirs - exact).abs().max() + 1e-5 * exact.abs().max()


@pytest.mark.parametrize("layout", ["innermost", "common"])
@pytest.mark.parametrize("with_skip", [False, True])
@pytest.mark.parametrize("with_affine", [False, True])
@pytest.mark.parametrize("spatial", [(3, 4), (2, 3, 2)])
def test_first_and_second_derivatives_of_the_norm(spatial, with_affine, with_skip, layout):
    torch.manual_seed(0)

    def a_map() -> torch.Tensor:
        x = torch.randn(2, 3, *spatial, dtype=torch.float64)
        return innermost.innermost(x) if layout == "innermost" else x

    given = [a_map(), *((torch.randn(3, dtype=torch.float64) if with_affine else None) for _ in range(2))]
    given = [*given, a_map() if with_skip else None]
    given = [None if one is None else one.requires_grad_() for one in given]
    assert torch.autograd.gradcheck(innermost._Normalised.apply, (*given, 1e-3, 0.1))
    assert torch.autograd.gradgradcheck(innermost._Normalised.apply, (*given, 1e-3, 0.1))


def test_what_needs_no_gradient_gets_none():
    x = torch.randn(2, 3, 4, 5).clone(memory_format=torch.channels_last)
    norm, nonlin = INSTANCE_NORMS[2](3, affine=True), nn.LeakyReLU(0.5)
    norm.weight.requires_grad_(requires_grad=False)
    skip = torch.randn_like(x).requires_grad_()
    with innermost.quick_training():
        innermost.normalised(x, norm, nonlin, skip).sum().backward()
    assert x.grad is norm.weight.grad is None
    assert norm.bias.grad.shape == (3,)
    assert set(skip.grad.unique().tolist()) == {0.5, 1}


def test_any_layout_of_the_gradient_and_many_of_them_at_once_are_taken():
    common = torch.randn(2, 3, 4, 5, requires_grad=True)
    x = innermost.innermost(common.detach()).requires_grad_()
    norm, grads = INSTANCE_NORMS[2](3, affine=True), torch.randn(2, 2, 3, 4, 5)
    theirs = torch.autograd.grad(F.leaky_relu(norm(common), 0.01), common, grads, is_grads_batched=True)[0]
    with innermost.quick_training():
        y = innermost.normalised(x, norm, nn.LeakyReLU())
    ours = [torch.autograd.grad(y, x, grad, retain_graph=True)[0] for grad in grads]
    assert torch.allclose(torch.stack(ours), theirs, atol=1e-5)
    assert torch.allclose(torch.autograd.grad(y, x, grads, is_grads_batched=True)[0], theirs, atol=1e-5)


def test_second_derivatives_through_a_norm_that_is_called_twice_and_has_a_hook(monkeypatch):
    def twice() -> torch.Tensor:
        torch.manual_seed(0)
        norm, x = INSTANCE_NORMS[2](3, affine=True), torch.randn(2, 3, 4, 5).clone(memory_format=LAYOUTS[4])
        norm.weight.register_hook(lambda grad: 2 * grad)
        y = innermost.normalised(innermost.normalised(x, norm, nn.LeakyReLU()), norm, nn.LeakyReLU())
        first = torch.autograd.grad(y.sin().sum(), (norm.weight, norm.bias), create_graph=True)
        second = torch.autograd.grad(sum(part.square().sum() for part in first), (norm.weight, norm.bias))
        return torch.cat([*first, *second])

    expected = twice()
    with innermost.quick_training():
        assert torch.allclose(twice(), expected, rtol=1e-4, atol=1e-4)


def test_hooks_on_norms_activations_and_heads_are_called():
    network, calls = a_network(2), []
    watched = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, (nn.InstanceNorm2d, nn.LeakyReLU)) or name.startswith("decoder.seg_layers.")
    ]
    for name, module in watched:
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        network.train()(torch.randn(2, 1, *SPATIAL[2]))
    expected = set(calls)
    assert len(expected) == len(watched)
    calls.clear()
    step(network, torch.randn(2, 1, *SPATIAL[2]))
    assert set(calls) == expected


def test_a_layer_of_anothers_making_is_called_as_it_is():
    network, calls = a_network(2), []

    class Adapted(nn.Conv2d):
        def forward(self, x):
            calls.append(x.shape)
            return super().forward(x)

    for head in network.decoder.seg_layers:
        head.__class__ = Adapted
    step(network, torch.randn(2, 1, *SPATIAL[2]))
    assert len(calls) == len(network.decoder.seg_layers)


@pytest.mark.parametrize("layout", ["innermost", "common"])
@pytest.mark.parametrize("drawing", ["a layer", "a hook", "an activation"])
def test_what_is_computed_again_draws_the_same_random_numbers(drawing, layout, monkeypatch):
    if layout == "common":
        in_the_common_layout(monkeypatch)

    class Noisy(nn.LeakyReLU):
        def forward(self, x):
            return super().forward(F.dropout(x, 0.3))

    network, image = a_network(2), torch.randn(2, 1, *SPATIAL[2])
    for block in (network.encoder.stem[0], network.decoder.stages[-1][-1]):
        if drawing == "a layer":
            block.conv2 = nn.Sequential(nn.Dropout2d(0.3), block.conv2)
        elif drawing == "a hook":
            block.norm1.register_forward_hook(lambda module, given, output: F.dropout(output, 0.3))
        else:
            block.nonlin = Noisy()
    torch.manual_seed(1)
    with nothing_recomputed():
        _, expected = step(network, image)
    torch.manual_seed(1)
    _, grads = step(network, image)
    for name, grad in grads.items():
        assert torch.allclose(grad, expected[name], atol=1e-6), name


def test_a_penalty_of_gradients_is_that_of_the_common_layout(monkeypatch):
    network, image = a_network(3), torch.randn(1, 1, *SPATIAL[3])

    def penalty() -> dict[str, torch.Tensor]:
        network.zero_grad()
        x = image.clone().requires_grad_()
        torch.autograd.grad(network(x)[0].sin().sum(), x, create_graph=True)[0].square().sum().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    ours = penalty()
    in_the_common_layout(monkeypatch)
    theirs = penalty()
    assert ours.keys() == theirs.keys()
    largest = max(grad.abs().max() for grad in theirs.values())
    for name, grad in ours.items():
        assert (grad - theirs[name]).abs().max() < 1e-4 * largest, name


def test_what_hooks_see_of_the_decoder_stays_as_they_saw_it():
    network, kept = a_network(2), []
    for module in network.decoder.upsamplers:
        module.register_forward_hook(lambda module, given, output: kept.append((output, output.clone())))
        module.register_full_backward_hook(lambda *_: None)
    step(network, torch.randn(2, 1, *SPATIAL[2]))
    assert len(kept) == len(network.decoder.upsamplers)
    assert all(torch.equal(one, other) for one, other in kept)


def test_another_way_to_scale_up_may_take_the_place_of_ours():
    class Up(nn.Module):
        def __init__(self, ours: nn.Module):
            super().__init__()
            self.ours = ours

        def forward(self, x, size):
            return self.ours(x, size).sigmoid()  # keeps what it gives

    network = a_network(2)
    network.decoder.upsamplers[0] = Up(network.decoder.upsamplers[0])
    step(network, torch.randn(2, 1, *SPATIAL[2]))


@pytest.mark.parametrize("part", ["encoder", "encoder.stem", "encoder.stages.0", "decoder.stages.1.0"])
@pytest.mark.parametrize("way", ["around it", "in its place"])
def test_a_part_may_be_computed_again_by_others(part, way):
    network, image = a_network(2), torch.randn(2, 1, *SPATIAL[2])
    _, expected = step(network, image)
    if way == "around it":
        apply_activation_checkpointing(network, check_fn=lambda module: module is network.get_submodule(part))
    else:
        module = network.get_submodule(part)
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    _, grads = step(network, image)
    for name, grad in grads.items():
        plain = name.replace("_checkpoint_wrapped_module.", "")
        assert torch.allclose(grad, expected[plain], atol=1e-5), name


@pytest.mark.parametrize("other", ["batch norm", "ReLU", "its like", "another system"])
def test_a_network_that_is_called_within_another_goes_its_own_way(other):
    options = {"batch norm": {"norm_op": nn.BatchNorm2d, "norm_op_kwargs": {}}, "ReLU": {"nonlin": nn.ReLU}}
    image, found = torch.randn(2, 1, *SPATIAL[2]), []
    if other == "another system":
        teacher = UMambaBot(1, 2, (8, 16), nn.Conv2d, 3, [[1, 1], [2, 2]], 3, deep_supervision=True)
    else:
        teacher = a_network(2, **options.get(other, {}))
    with torch.no_grad():
        expected = teacher(image)

    def hook(*_) -> None:
        with torch.no_grad():
            found.append(teacher(image))

    network = a_network(2)
    network.encoder.register_forward_hook(hook)
    step(network, image)
    assert len(found) == 1
    for one, right in zip(found[0], expected, strict=True):
        assert torch.allclose(one, right, atol=1e-5)


@pytest.mark.parametrize(
    "way",
    [
        "evaluation",
        "no gradients",
        "inference",
        "autocast",
        "float64",
        "batch norm",
        "ReLU",
        "slope below 0",
        "torch.func",
    ],
)
def test_everything_else_keeps_the_common_layout(way):
    options = {"batch norm": {"norm_op": nn.BatchNorm2d, "norm_op_kwargs": {}}, "ReLU": {"nonlin": nn.ReLU}}
    options["slope below 0"] = {"nonlin_kwargs": {"negative_slope": -0.1}}
    network, image = a_network(2, **options.get(way, {})), torch.randn(2, 1, *SPATIAL[2])
    found = layouts(network)
    if way == "evaluation":
        network.eval()
    contexts = {"no gradients": torch.no_grad(), "inference": torch.inference_mode()}
    contexts["autocast"] = torch.autocast("cpu", dtype=torch.bfloat16)
    if way == "float64":
        network, image = network.double(), image.double()
    if way == "torch.func":
        weights = dict(network.named_parameters())
        torch.func.grad(lambda w: torch.func.functional_call(network, w, (image,))[0].sum())(weights)
    elif way in contexts:
        with contexts[way]:
            network(image)
    else:
        network(image)
    assert found
    assert not any(found)


def test_an_exported_network_has_the_common_layout_and_torchs_norms():
    network, image = a_network(2), torch.randn(2, 1, *SPATIAL[2])
    graph = str(torch.export.export(network, (image,)).graph)
    assert "instance_norm" in graph
    assert "native_batch_norm" not in graph


def test_torch_has_what_is_needed_and_without_it_the_common_layout_is_taken(monkeypatch):
    assert innermost._is_as_we_know_it()
    monkeypatch.setattr(innermost, "_is_as_we_know_it", lambda: False)
    network = a_network(2)
    found = layouts(network)
    step(network, torch.randn(2, 1, *SPATIAL[2]))
    assert found
    assert not any(found)


def test_a_norm_that_gives_other_numbers_is_not_taken(monkeypatch):
    monkeypatch.setattr(innermost, "moments", lambda x: (x.new_zeros(x.shape[:2]), x.new_ones(x.shape[:2])))
    assert not innermost._is_as_we_know_it.__wrapped__()


def test_within_a_checkpoint_of_another_the_gradients_are_the_same_from_the_first_step_on():
    network, image = a_network(2), torch.randn(2, 1, *SPATIAL[2])
    innermost._is_as_we_know_it.cache_clear()
    sum(output.sin().mean() for output in checkpoint(network, image, use_reentrant=False)).backward()
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    assert innermost._is_as_we_know_it()
    _, grads = step(network, image)
    for name, grad in found.items():
        assert torch.allclose(grad, grads[name], atol=1e-6), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("change", ["counted", "without oneDNN", "a hook", "other strides"])
def test_what_changes_between_a_forward_and_its_backward_pass_changes_nothing(change, checkpointing, monkeypatch):
    network, image = a_network(2, checkpointing=checkpointing), torch.randn(2, 1, *SPATIAL[2])
    _, expected = step(network, image)
    network.zero_grad()
    hooks = saved_tensors_hooks(lambda x: x.detach().contiguous(), lambda x: x)
    with hooks if change == "other strides" else nullcontext():
        outputs = network(image)
    loss = sum(output.sin().mean() for output in outputs)
    if change == "a hook":
        network.encoder.stem[0].norm1.register_forward_hook(lambda *_: None)
    contexts = {"counted": FlopCounterMode(display=False), "without oneDNN": torch.backends.mkldnn.flags(enabled=False)}
    with contexts.get(change, nullcontext()):
        loss.backward()
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-6), name


@pytest.mark.parametrize("options", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 1, "groups": 2}], ids=str)
def test_a_head_of_another_kind_may_take_the_place_of_ours(options):
    network = a_network(2)
    network.decoder.seg_layers[-1] = nn.Conv2d(16, 4, **options)
    outputs, _ = step(network, torch.randn(2, 1, *SPATIAL[2]))
    assert outputs[0].shape == (2, 4, *SPATIAL[2])


def test_a_network_that_was_pickled_before_there_was_a_choice_is_trained():
    network = a_network(2)
    for block in network.modules():
        for name in ("saving", "reads_little", "large"):
            vars(block).pop(name, None)
    step(network, torch.randn(2, 1, *SPATIAL[2]))
