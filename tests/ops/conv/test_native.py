import pytest
import torch

from transmamba.ops.conv import native
from transmamba.ops.conv.inputs import ConvInputs
from transmamba.ops.conv.reference import run
from transmamba.ops.native import library

pytestmark = pytest.mark.skipif(not library.available(), reason="the package was built without the native library")

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
FLOATS = ("x", "weight", "bias", "initial_tokens")
FEATURES = {
    "plain": dict(k=1, without=("orders", "inverses", "segments", "initial_tokens")),
    "everything": dict(),
    "no bias": dict(without=("bias", "segments")),
    "one direction with an order": dict(k=1, without=("segments",)),
    "width 1": dict(width=1),
    "width 2": dict(width=2, dim=67),
    "width 3": dict(width=3, without=("orders", "inverses")),
    "width 7": dict(width=7),
    "no activation": dict(silu=False),
    "shorter than the kernel": dict(length=2, width=5),
    "several parts of the channels": dict(dim=197, length=17),
}


def convolution(batch=2, k=3, length=37, dim=19, width=4, without=(), silu=True):
    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    orders = torch.stack([torch.randperm(length) for _ in range(k)])
    fields = {
        "x": draw(batch, length, 2 * dim)[..., dim:],
        "weight": draw(k, dim, width),
        "bias": draw(k, dim),
        "orders": orders,
        "inverses": orders.argsort(-1),
        "segments": torch.arange(length).mul(3).div(max(length, 1), rounding_mode="floor").repeat(batch, 1),
        "initial_tokens": draw(batch, k, width - 1, dim),
    }
    return ConvInputs(**{n: x for n, x in fields.items() if n not in without}, silu=silu)


def cast(c, dtype, of=FLOATS):
    return c._replace(**{n: getattr(c, n).to(dtype) for n in of if getattr(c, n) is not None})


def check(c, dtype, variant=None):
    """Compare outputs and gradients with plain torch in float64; weights keep the compute dtype."""
    c = cast(cast(c, torch.promote_types(dtype, torch.float32)), dtype, ("x", "initial_tokens"))
    y = native.forward(c, variant=variant)
    grad_y = torch.randn_like(y)
    got = {"y": y} | native.backward(c, grad_y, variant=variant)._asdict()
    wide = cast(c, torch.float64)
    leaves = {n: getattr(wide, n).clone().requires_grad_() for n in FLOATS if getattr(wide, n) is not None}
    expected = run(wide._replace(**leaves))
    grads = torch.autograd.grad(expected, list(leaves.values()), grad_y.double(), materialize_grads=True)
    for name, want in {"y": expected.detach(), **dict(zip(leaves, grads, strict=True))}.items():
        like = y if name == "y" else getattr(c, name)
        assert got[name].shape == like.shape and got[name].dtype == like.dtype, name
        assert (got[name] - want).norm() <= TOLERANCE[dtype] * want.norm(), name


@pytest.mark.parametrize("variant", library.variants() if library.available() else ())
@pytest.mark.parametrize("feature", FEATURES)
def test_every_instruction_set_agrees_with_plain_torch(feature, variant):
    for dtype in TOLERANCE:
        check(convolution(**FEATURES[feature]), dtype, variant)


@pytest.mark.parametrize("sizes", [(0, 2, 5, 3, 4), (2, 2, 0, 3, 4), (2, 2, 5, 0, 4)])
def test_empty_sizes_have_empty_answers(sizes):
    c = convolution(*sizes)
    y = native.forward(c)
    grads = native.backward(c, torch.zeros_like(y))
    assert y.shape == (sizes[0], 2, *sizes[2:4])
    assert not grads.weight.any() and not grads.bias.any() and grads.x.shape == c.x.shape


def test_results_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    c = cast(convolution(dim=197), torch.float32)
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            y = native.forward(c)
            results.append((y, *native.backward(c, y)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_gradient_of_the_outputs_may_be_broadcast_or_transposed():
    c = convolution()
    for grad in (torch.ones(2, 3, 37, 1).double().expand(-1, -1, -1, 19), torch.randn(2, 3, 19, 37).double().mT):
        got, want = native.backward(c, grad), native.backward(c, grad.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("size", [1e-30, 40.0, 1e4, 1e30])
def test_extreme_inputs_have_finite_gradients(size):
    c = cast(convolution(without=("segments", "initial_tokens", "bias")), torch.float32)
    c = c._replace(x=c.x * size)
    y = native.forward(c)
    assert y.isfinite().all()
    assert all(x.isfinite().all() for x in native.backward(c, torch.ones_like(y)) if x is not None)


def test_orders_must_be_permutations():
    c = convolution(k=1, length=3)._replace(orders=torch.tensor([[0, 1, 3]]))
    with pytest.raises(ValueError, match=r"orders must hold a permutation of range\(3\) in every row"):
        native.forward(c)


def test_refusals_name_their_reasons(monkeypatch):
    c = convolution()
    assert native.unsupported_reasons(c) == []
    assert native.unsupported_reasons(c._replace(weight=torch.zeros(1, 3, 33))) == ["needs a width of 1 to 32, not 33"]
    assert "x is on meta" in native.unsupported_reasons(c._replace(x=c.x.to("meta")))[0]
    assert "x is torch.int64" in native.unsupported_reasons(c._replace(x=c.x.long()))[0]
    monkeypatch.setattr(native, "available", lambda: False)
    assert "its library was not built" in native.unsupported_reasons(c)[0]
