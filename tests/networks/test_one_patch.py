"""One patch on a CPU: the same values by another way, and only where nobody else looks on."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_matches_reference
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from nnunet_logvmamba.networks import LoGVMambaUNet, prediction

SLOW = "Slow"


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def another_torch() -> Iterator[None]:
    """What is known of torch is asked anew in the test, and again after it."""
    prediction._is_as_we_know_it.cache_clear()
    yield
    prediction._is_as_we_know_it.cache_clear()


def network(**options: object) -> LoGVMambaUNet:
    torch.manual_seed(0)
    return LoGVMambaUNet.from_channels(3, 1, 2, (16, 32), strides=(2, 2), **options).eval()


def image(batch: int = 1) -> Tensor:
    return torch.randn(batch, 1, 16, 12, 8, generator=torch.Generator().manual_seed(1))


def own_way(model: nn.Module, x: Tensor) -> Tensor:
    """What torch itself makes of it."""
    with patch.object(prediction, "predicts_one_patch", return_value=False):
        return model(x)


def ops_of(call: Callable[[], object]) -> set[str]:
    with torch.profiler.profile() as seen:
        call()
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize(
    ("size", "out", "kernel", "batch", "groups", "slow"),
    [
        ((32, 20, 28, 20), 32, 3, 1, 1, True),  # half resolution of a patch of 40 x 56 x 40
        ((32, 20, 32, 999), 32, 3, 1, 1, True),  # 20,480, and the last axis does not count
        ((32, 20, 33, 1), 32, 3, 1, 1, False),
        ((32, 20, 28, 20), 32, 3, 2, 1, False),
        ((32, 20, 28, 20), 32, 3, 1, 2, False),
        ((32, 20, 28, 20), 32, 5, 1, 1, False),
        ((32, 20, 28, 20), 32, 1, 1, 1, True),
        ((32, 20, 32), 32, 3, 1, 1, True),
        ((32, 20, 33), 32, 3, 1, 1, False),
    ],
)
def test_torch_takes_its_slow_path_where_it_did_when_prediction_was_written(
    size, out, kernel, batch, groups, slow, two_threads
):
    """If this fails torch has another rule: measure what ``networks/prediction.py`` brings now, and mend or drop it."""
    axes = len(size) - 1
    x, weight = torch.empty(batch, *size), torch.empty(out, size[0] // groups, *[kernel] * axes)
    sides = ([1] * axes, [kernel // 2] * axes, [1] * axes)
    chosen = torch._C._select_conv_backend(x, weight, None, *sides, False, [0] * axes, groups)
    assert chosen.name.startswith(SLOW) is slow, f"torch {torch.__version__} chooses {chosen.name}"


@pytest.mark.parametrize("grad_off", [torch.no_grad, torch.inference_mode])
def test_a_patch_is_predicted_without_slow_convolutions_and_as_torch_itself_does(grad_off):
    model, x = network(), image()
    with grad_off():
        logits = model(x)
        assert_matches_reference(logits, own_way(model, x), tolerance=1e-5)
        assert logits.is_contiguous()
        assert "aten::slow_conv3d_forward" in ops_of(lambda: own_way(model, x))
        seen = ops_of(lambda: model(x))
    assert not [op for op in seen if "slow" in op]
    assert "aten::mkldnn_convolution" in seen


@pytest.mark.parametrize("size", [(40, 56, 40), pytest.param((48, 48, 48), marks=pytest.mark.slow)])
def test_a_patch_of_real_size_differs_by_rounding_alone(size):
    torch.manual_seed(0)
    model = LoGVMambaUNet.from_channels(3, 1, 3, (32, 64, 128), strides=(2, 2, 2)).eval()
    x = torch.randn(1, 1, *size)
    with torch.inference_mode():
        assert_matches_reference(model(x), own_way(model, x), tolerance=2e-6)


def test_copies_pickles_and_weights_know_nothing_of_it():
    model, x = network(), image()
    names, kept = list(model.state_dict()), set(vars(model))
    with torch.no_grad():
        outputs = model(x)
        assert torch.equal(copy.deepcopy(model)(x), outputs)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), outputs)
    assert (list(model.state_dict()), set(vars(model))) == (names, kept)


def test_an_error_inside_leaves_torch_as_it_was():
    model = network()
    with torch.no_grad(), pytest.raises(ValueError, match="2 channel"):
        model(image().expand(1, 2, 16, 12, 8))
    assert not torch._C._len_torch_function_stack()


class Mine(Tensor):
    """A tensor with a class of its own."""


def within(make: Callable[[], AbstractContextManager]) -> Callable[[nn.Module, Tensor], object]:
    def call(model: nn.Module, x: Tensor) -> object:
        with make():
            return model(x)

    return call


ELSEWHERE: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "training": lambda model, x: model.train()(x),
    "with gradients": within(torch.enable_grad),
    "two patches": lambda model, x: model(torch.cat((x, x))),
    "double": lambda model, x: model.double()(x.double()),
    "autocast": within(lambda: torch.autocast("cpu", torch.bfloat16)),
    "meta": lambda model, x: model.to("meta")(x.to("meta")),
    "without oneDNN": within(lambda: torch.backends.mkldnn.flags(enabled=False)),
    "counted": within(lambda: FlopCounterMode(display=False)),
    "recorded": lambda model, x: make_fx(model)(x),
    "forward mode": within(forward_ad.dual_level),
    "mapped": lambda model, x: torch.vmap(model)(x[None]),
    "a class of its own": lambda model, x: model(x.as_subclass(Mine)),
    "traced": lambda model, x: torch.jit.trace(model, x, check_trace=False),
    "exported": lambda model, x: torch.export.export(model, (x,)),
    "compiled": lambda model, x: torch.compile(model, fullgraph=True, backend="eager")(x),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ELSEWHERE)
def test_the_way_is_torchs_own_where_somebody_looks_on(how, monkeypatch):
    monkeypatch.setattr(prediction, "_FastWay", None)
    model, x = network(family="no_ssm"), image()
    with torch.no_grad():
        with pytest.raises(TypeError):  # so that whoever goes that way is found out
            model(x)
        ELSEWHERE[how](model, x)


def test_gradients_in_evaluation_are_those_of_torch():
    model = network()
    model(image()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.decoder.stages.parameters())


@pytest.mark.parametrize(
    "change",
    [
        lambda *arguments: 1 / 0,
        lambda x, weight, *others: torch.zeros(()),
    ],
    ids=["raises", "gives something else"],
)
def test_another_torch_goes_its_own_way(change, monkeypatch, another_torch):
    model, x = network(), image()
    monkeypatch.setattr(torch, "mkldnn_convolution", change)
    with torch.no_grad():
        assert torch.equal(model(x), own_way(model, x))


def test_what_is_known_of_torch_is_asked_without_a_random_number(another_torch):
    model, x = network(), image()
    state = torch.get_rng_state()
    with torch.no_grad():
        model(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_known_of_torch_is_asked_on_the_cpu_whatever_the_default_device_is(another_torch):
    with torch.device("meta"):
        assert prediction._is_as_we_know_it()


CALLS = {
    "plain": (F.conv3d, (3, 4, 6, 5, 4), (6, 4, 3, 3, 3), {}),
    "one patch": (F.conv3d, (1, 4, 6, 5, 4), (6, 4, 3, 1, 3), {"padding": (1, 0, 1), "stride": 2}),
    "dilated groups": (F.conv2d, (1, 4, 16, 15), (6, 2, 3, 3), {"padding": 2, "dilation": (2, 1), "groups": 2}),
    "a word": (F.conv2d, (1, 4, 16, 15), (6, 4, 3, 3), {"padding": "same"}),
    "no batch": (F.conv2d, (4, 16, 15), (6, 4, 3, 3), {"padding": 1}),
    "double": (F.conv2d, (1, 4, 16, 15), (6, 4, 3, 3), {"padding": 1, "dtype": torch.float64}),
    "no patch": (F.conv2d, (0, 4, 16, 15), (6, 4, 3, 3), {}),
}


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_convolutions_are_those_of_torch(call, dense):
    own, size, kernel, options = CALLS[call]
    options = dict(options)
    dtype = options.pop("dtype", torch.float32)
    x, weight, bias = (torch.randn(*shape, 2, dtype=dtype)[..., 0] for shape in (size, kernel, kernel[:1]))
    if dense:
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    with torch.no_grad():
        assert_matches_reference(prediction._WAYS[own](x, weight, bias, **options), own(x, weight, bias, **options))


@pytest.mark.parametrize("size", [(1, 3, 40, 30, 20), (1, 3, 50, 40), (1, 3, 1, 1, 7), (2, 3, 4, 5, 6), (1, 3, 9)])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_instance_norms_are_those_of_torch_and_as_precise(size, mean):
    x, weight, bias = torch.randn(size) + mean, torch.randn(3), torch.randn(3)
    expected = F.instance_norm(x.double(), weight=weight.double(), bias=bias.double())
    with torch.no_grad():
        ours = prediction._instance_norm(x, weight=weight, bias=bias)
        assert_matches_reference(prediction._group_norm(x, 3, weight, bias), ours, tolerance=1e-5)
        assert torch.equal(prediction._group_norm(x, 1), F.group_norm(x, 1))
    own = F.instance_norm(x, weight=weight, bias=bias)
    assert (ours - expected).abs().max() <= 4 * (own - expected).abs().max() + 1e-6


def test_instance_norms_with_statistics_of_their_own_or_one_voxel_are_left_alone():
    x, statistics = torch.randn(1, 3, 4, 4), (torch.randn(3), torch.rand(3) + 1)
    expected = F.instance_norm(x, *statistics, use_input_stats=False)
    assert torch.equal(prediction._instance_norm(x, *statistics, use_input_stats=False), expected)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        prediction._instance_norm(x[:, :, :1, :1])
