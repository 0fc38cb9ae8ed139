"""The op through which logits leave a network: identity with all its derivatives, or an error."""

import pytest
import torch
from torch.func import grad, jvp, vmap

from nnunet_logvmamba.errors import NotFiniteError
from nnunet_logvmamba.ops.finite import all_finite, count_not_finite, finite

BAD = [float("nan"), float("inf"), float("-inf")]


def tensors(dtype=torch.float32):
    return torch.randn(2, 3, 4, 5, dtype=dtype), torch.randn(2, 1, 4, 5)


def test_it_keeps_the_promises_of_a_registered_op():
    logits, image = tensors()
    op = torch.ops.nnunet_logvmamba.finite.default
    torch.library.opcheck(op, (logits, image))
    torch.library.opcheck(op, (logits.transpose(2, 3).requires_grad_(), image))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_finite_logits_pass_and_share_no_memory(dtype):
    logits, image = tensors(dtype)
    logits[0, 0, 0, 0] = torch.finfo(dtype).max
    out = finite(logits, image)
    assert torch.equal(out, logits)
    assert out.dtype == dtype
    assert out.data_ptr() != logits.data_ptr()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_number_is_found_in_every_dtype_and_anywhere(dtype, value):
    for index in (0, 63, 119):
        logits, image = tensors(dtype)
        logits.view(-1)[index] = value
        assert (all_finite(logits), count_not_finite(logits)) == (False, 1)
        with pytest.raises(NotFiniteError, match="1 of 120 logits are NaN or infinite although the image is finite"):
            finite(logits, image)
    image[1, 0, 0, 0] = value
    with pytest.raises(NotFiniteError, match="1 in channel 0, of 40 per channel"):
        finite(logits, image)


def test_both_infinities_do_not_cancel():
    logits, image = tensors()
    logits.view(-1)[:2] = torch.tensor([float("inf"), float("-inf")])
    with pytest.raises(NotFiniteError, match="2 of 120"):
        finite(logits, image)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_compiled_code_raises_the_same_error(mode, backend):
    torch._dynamo.reset()
    logits, image = tensors()
    compiled = torch.compile(lambda x: finite(x * 2, image) + 1, fullgraph=True, backend=backend)
    with mode():
        leaf = logits.clone().requires_grad_(mode is torch.enable_grad)
        assert torch.allclose(compiled(leaf), logits * 2 + 1)
        logits[1, 2, 3, 4] = float("nan")
        with pytest.raises(NotFiniteError, match="1 of 120"):
            compiled(logits.clone().requires_grad_(mode is torch.enable_grad))


def test_all_derivatives_are_those_of_the_identity():
    logits, image = tensors()
    tangent = torch.randn_like(logits)

    def square(x):
        return finite(x, image).square().sum()

    assert torch.allclose(grad(square)(logits), 2 * logits)
    assert torch.allclose(jvp(lambda x: finite(x, image), (logits,), (tangent,))[1], tangent)
    assert torch.allclose(jvp(grad(square), (logits,), (tangent,))[1], 2 * tangent)
    assert torch.allclose(vmap(grad(square))(torch.stack([logits, logits * 2]))[1], 4 * logits)
    leaf = logits.clone().requires_grad_()
    (first,) = torch.autograd.grad(square(leaf), leaf, create_graph=True)
    assert torch.allclose(torch.autograd.grad((first * tangent).sum(), leaf)[0], 2 * tangent)


def test_somebody_else_may_judge_the_logits(monkeypatch):
    logits, image = tensors()
    logits[0] = float("nan")
    asked = []
    monkeypatch.setattr("nnunet_logvmamba.ops.finite.LISTENERS", [lambda *given: asked.append(given) or True])
    assert finite(logits, image).isnan().any()
    assert torch.equal(asked[0][1], image)
