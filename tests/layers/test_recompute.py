"""What is computed again in the backward pass gives what is kept otherwise gives, and less is kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from nnunet_logvmamba.layers import recomputed


def chain(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(inplace=True), *between, nn.Conv2d(4, 3, 3))


def image(**options) -> Tensor:
    return torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(1), **options)


def saving(module: nn.Module, always: bool = False) -> Callable[[Tensor], Tensor]:
    return lambda x: recomputed(module, (module,), x, always=always)


def gradients(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Outputs and gradients of the input and of all weights."""
    x = x.clone().requires_grad_()
    torch.manual_seed(2)
    y = function(x)
    return [y, *torch.autograd.grad(y.sin().sum(), [x, *module.parameters()])]


def kept_bytes(function: Callable[[Tensor], Tensor], x: Tensor, weights: nn.Module) -> int:
    kept = {}
    own = {weight.data_ptr() for weight in weights.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = function(x)
    del y
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("always", [False, True])
def test_outputs_and_gradients_are_equal_to_the_last_bit_also_under_autocast_and_with_dropout(always, dtype):
    module = chain(nn.Dropout(0.5))
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        expected = gradients(module, module, image())
        found = gradients(module, saving(module, always), image())
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_of_norm_activation_and_convolution_the_input_alone_is_kept():
    module, x = chain(), image()
    assert kept_bytes(saving(module), x, module) == x.nbytes
    assert kept_bytes(module, x, module) > 2 * x.nbytes


def test_the_last_convolution_is_not_computed_again_and_what_is_nested_once():
    module, calls = chain(), []
    for name, part in module.named_children():
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    for function in (saving(module), lambda x: recomputed(saving(module), (module,), x, always=True)):
        calls.clear()
        function(image()).sum().backward()
        assert calls == ["0", "1", "2", "0", "1"]


def test_second_derivatives_are_right():
    module = chain().double()
    x = image(dtype=torch.float64)[:1, :, :5, :4].requires_grad_()
    assert torch.autograd.gradcheck(saving(module), (x,))
    assert torch.autograd.gradgradcheck(saving(module), (x,))

    def penalty(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        (slope,) = torch.autograd.grad(function(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, *module.parameters()], allow_unused=True)

    for one, other in zip(penalty(module), penalty(saving(module)), strict=True):
        assert one is other is None or torch.allclose(one, other, rtol=1e-10)


def test_forward_mode_and_transforms_of_torch_func_are_as_without():
    module, x = chain(), image()
    saved, tangent = saving(module), torch.ones_like(x)
    assert torch.equal(torch.func.jvp(module, (x,), (tangent,))[1], torch.func.jvp(saved, (x,), (tangent,))[1])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        assert torch.equal(forward_ad.unpack_dual(saved(dual)).tangent, forward_ad.unpack_dual(module(dual)).tangent)
    total = [torch.func.grad(lambda x, f=function: f(x).sum())(x) for function in (module, saved)]
    assert torch.equal(*total)


def test_weights_count_as_they_were_in_the_forward_pass():
    module, x = chain(), image().requires_grad_()
    others = {name: weight.detach() + 1 for name, weight in module.named_parameters()}
    found = []
    for function in (module, saving(module)):
        holder = nn.Module()
        holder.add_module("module", module)
        object.__setattr__(holder, "forward", function)
        weights = {f"module.{name}": weight.clone().requires_grad_() for name, weight in others.items()}
        y = torch.func.functional_call(holder, weights, (x,))
        found.append(torch.autograd.grad(y.sum(), [x, *weights.values()]))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))

    y = saving(module)(x)
    with torch.no_grad():
        module[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_running_statistics_change_once_and_are_left_alone_unless_told_otherwise():
    def trained(wrap: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> tuple[dict, int]:
        module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3))
        module.load_state_dict(start)
        gradients(module, wrap(module), image())
        return module.state_dict(), kept_bytes(wrap(module), image(), module)

    start = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)).state_dict()
    plain, kept = trained(lambda module: module)
    for wrap, keeps_all in ((saving, True), (lambda module: saving(module, always=True), False)):
        found, size = trained(wrap)
        assert all(torch.equal(plain[name], found[name]) for name in plain)
        assert (size == kept) is keeps_all


@pytest.mark.parametrize("always", [False, True])
def test_it_compiles_without_a_graph_break(always):
    module, x = chain(), image()
    torch._dynamo.reset()
    compiled = torch.compile(saving(module, always), fullgraph=True, backend="aot_eager")
    for one, other in zip(gradients(module, module, x), gradients(module, compiled, x), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
