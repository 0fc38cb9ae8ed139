"""One block, all its settings: shapes, gradients, sizes, refusals."""

import itertools
import json

import pytest
import torch

from nnunet_logvmamba.layers import PLACEMENTS, DropPath, LoGVMambaBlock, SelectiveSSM

TOKENS = list(itertools.product((True, False), (True, False)))


def block(spatial_dims=3, **settings) -> LoGVMambaBlock:
    settings = {"canonical_grid": (2,) * spatial_dims, "global_stride": 2, "channels_per_token": 2} | settings
    return LoGVMambaBlock(32, spatial_dims, **settings)


@pytest.mark.parametrize("spatial", [(6, 5), (3, 4, 5), (1, 1, 1)])
@pytest.mark.parametrize(("local_tokens", "global_tokens"), TOKENS)
@pytest.mark.parametrize("directions", [1, 2, 4])
def test_map_keeps_its_shape_and_every_parameter_gets_a_gradient(spatial, local_tokens, global_tokens, directions):
    mixer = block(len(spatial), local_tokens=local_tokens, global_tokens=global_tokens, directions=directions)
    x = torch.randn(2, 32, *spatial, requires_grad=True)
    y = mixer(x)
    assert y.shape == x.shape
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        lonely = torch.Size(spatial).numel() == 1 and name in ("ssm.A_log", "ssm.D")
        assert lonely or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placement_changes_the_result(placement):
    torch.manual_seed(0)
    mixer, x = block(placement="head"), torch.randn(1, 32, 4, 4, 4)
    head = mixer(x)
    mixer.placement = placement
    assert torch.allclose(mixer(x), head) == (placement == "head")


def test_control_without_states_keeps_tokens_gate_and_fold_and_drops_the_rest():
    full, control = block(), block(states=False)
    names = {name for name, _ in control.named_parameters()}
    dropped = {name for name, _ in full.named_parameters()} - names
    assert names < {name for name, _ in full.named_parameters()}
    assert {name.split(".")[0] for name in dropped} == {"ssm", "global_tokens"}
    assert "ssm.D" in names
    y = control.ssm(x := torch.randn(1, 4, 1, 54))
    assert torch.equal(y, x)  # D starts at 1


def test_first_output_is_the_input_plus_what_the_branch_adds():
    mixer = block()
    torch.nn.init.zeros_(mixer.out_proj.weight)
    x = torch.randn(1, 32, 3, 3, 3)
    assert torch.equal(mixer(x), x)


def test_parameter_counts_equal_the_published_blocks(shared):
    counts = json.loads((shared / "golden" / "counts.json").read_text())["block_parameter_counts"]
    checked = 0
    for name, published in counts.items():
        parts = name.split("_")
        if "default" in parts:  # the narrow 2D L-VMamba, which is not built (D9)
            continue
        numbers = {key: int(part.removeprefix(key)) for part in parts for key in ("hidden", "expand") if key in part}
        spatial_dims, family = int(name[0]), parts[1]
        local = family in ("L", "LoG")
        settings = {"local_tokens": local, "global_tokens": family in ("G", "LoG"), "expand": numbers["expand"]}
        if settings["global_tokens"]:
            positions = int(parts[-1].removeprefix("S"))
            settings |= {
                "global_stride": int(parts[-3].removeprefix("stride")),
                "channels_per_token": int(parts[-2].removeprefix("q")),
                "canonical_grid": (positions,) + (1,) * (spatial_dims - 1),
            }
        if family == "SS2D4":
            settings["directions"] = 4
        mixer = LoGVMambaBlock(numbers["hidden"], spatial_dims, **settings)
        fixed_unfold_kernel = (27**2 if spatial_dims == 3 else 9**2) if local else 0
        ours = sum(parameter.numel() for parameter in mixer.parameters())
        assert ours == published - fixed_unfold_kernel, name
        checked += 1
    assert checked > 30


def test_initial_steps_lie_between_a_thousandth_and_a_tenth():
    step = torch.nn.functional.softplus(SelectiveSSM(200).dt_bias)
    assert step.min() >= 1e-3 - 1e-6
    assert step.max() <= 0.1 + 1e-6


def test_dropped_path_leaves_the_mean_and_is_idle_in_evaluation():
    path, x = DropPath(0.25), torch.ones(20000, 1)
    y = path(x)
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert path.eval()(x) is x


def test_half_precision_autocast_keeps_the_states_in_single():
    mixer, x = block().eval(), torch.randn(1, 32, 4, 4, 4)
    with torch.no_grad():
        single = mixer(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = mixer(x)
    assert half.isfinite().all()
    assert (half - single).abs().max() < 0.05 * single.abs().max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"placement": "tail"}, "'tail'.*'head', 'middle', 'split', 'interleaved'"),
        ({"directions": 3}, "valid are 1, 2, 4"),
        ({"squeeze": 5}, "32 channels are not divisible by squeeze 5"),
        ({"state_size": 0}, "state_size is 0"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"norm_eps": "1e-6"}, "norm_eps is '1e-6'; a number above 0 is needed"),
        ({"norm_eps": 0}, "norm_eps is 0; a number above 0 is needed"),
        ({"canonical_grid": None}, "canonical_grid"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        block(**arguments)


def test_unknown_backend_is_refused_naming_the_valid_ones():
    with pytest.raises(ValueError, match=r"'magic'.*chunked"):
        block(backend="magic")


def test_orders_that_do_not_match_the_directions_are_refused():
    ssm = SelectiveSSM(8, directions=2)
    with pytest.raises(ValueError, match="there are 1 orders for 2 directions; one each"):
        ssm(torch.randn(1, 5, 8), None, [None])


@pytest.mark.parametrize("spatial", [(6, 5), (3, 4, 5)])
def test_a_batch_of_one_gives_the_same_in_every_layout(spatial):
    torch.manual_seed(0)
    mixer = block(len(spatial))
    picture = torch.randn(*spatial, 32).movedim(-1, 0)  # channels last in memory, as files have them
    lone, last = picture[None], torch.channels_last if len(spatial) == 2 else torch.channels_last_3d
    expected = mixer(lone.contiguous())
    torch.testing.assert_close(mixer(lone), expected)
    torch.testing.assert_close(mixer(lone.clone(memory_format=last)), expected)
    torch.testing.assert_close(mixer(torch.cat([lone, -lone]))[:1], expected)
