"""The contract of a backbone as a function, for backbones that live outside this repository."""

import copy
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from transmamba._typing import typed
from transmamba.models import Backbone, BlockStack, Features, recompute_blocks

Check = Callable[[Any, Tensor], None]


@typed
def check_backbone(model: nn.Module, x: Tensor, *, skip: Collection[str] = ()) -> tuple[str, ...]:
    """Check everything that the library expects of a backbone, on a copy of the model.

    The checks are the functions of this file, listed in `CHECKS`; each states its promise in its docstring. They run in
    float32 on the device of the model, and take a few seconds for a tiny model, which is the one to give.

    Args:
        model: a backbone, new or trained.
        x: a batch of at least two different inputs.
        skip: names of checks to leave out, such as "exports_for_batches_of_any_size".

    Returns:
        Names of the checks that passed.

    Raises:
        ValueError: the batch is too small, or `skip` names no check.
        AssertionError: at least one check failed; the message has all that did, each with its promise and reason.

    Example:
        >>> from transmamba.models import VisionMamba
        >>> model = VisionMamba(img_size=8, patch_size=4, dim=12, depth=2, num_classes=5)
        >>> len(check_backbone(model, torch.randn(2, 3, 8, 8), skip=["compiles_in_one_graph"]))
        15
    """
    if len(x) < 2 or torch.equal(x[0], x[1]):
        raise ValueError("the checks compare samples: expected a batch of at least two different inputs")
    unknown = sorted(set(skip) - set(CHECKS))
    if unknown:
        raise ValueError(f"skip names no check: {', '.join(unknown)}; expected some of {', '.join(CHECKS)}")
    passed, failed = [], []
    for name, check in CHECKS.items():
        if name in skip:
            continue
        try:
            check(_prepared(model), x.detach().clone())
            passed.append(name)
        except Exception as error:  # any of them is a broken promise, and the others are checked all the same
            lines = (check.__doc__ or "").splitlines()
            failed.append(f"{name}: {lines[0]}\n    {type(error).__name__}: {error}".rstrip())
    if failed:
        kind = type(model).__name__
        raise AssertionError(f"{kind} fails {len(failed)} of {len(passed) + len(failed)} checks\n" + "\n".join(failed))
    return tuple(passed)


def has_the_methods(model: Any, x: Tensor) -> None:
    """A backbone has forward, forward_features, forward_intermediates, no_weight_decay and reset_parameters."""
    missing = [name for name in sorted(_METHODS) if not callable(getattr(model, name, None))]
    assert isinstance(model, Backbone) and not missing, f"missing: {', '.join(missing)}"
    features = model.forward_features(x)
    assert isinstance(features, Features), f"forward_features returns a {type(features).__name__}"


def features_fit_their_grids(model: Any, x: Tensor) -> None:
    """Every layer is (batch, token, dim): the tokens of its grid, and the extra ones, whose places the model names."""
    features = model.forward_features(x)
    grids = features.grids or (features.grid,) * len(features.layers)
    assert len(grids) == len(features.layers), f"{len(grids)} grids for {len(features.layers)} layers"
    for i, (layer, grid) in enumerate(zip(features.layers, grids, strict=True)):
        tokens = math.prod(grid) + len(features.extra)
        assert layer.dim() == 3 and layer.shape[:2] == (len(x), tokens), (
            f"layer {i} is {tuple(layer.shape)}, its grid {grid} and {len(features.extra)} extra tokens are {tokens}"
        )
    assert features.last.shape == features.layers[-1].shape, f"last is {tuple(features.last.shape)}"
    places = tuple(getattr(model, "extra_tokens", ()))
    assert places == features.extra, f"class tokens are at {features.extra}, the model's `extra_tokens` are {places}"
    assert not features.directions, "directions are there although nobody asked for them"
    out, one = model(x), model(x[:1])
    assert len(out) == len(x) and one.shape == (1, *out.shape[1:]), f"forward gives {tuple(out.shape)}"


def layers_are_the_stream_after_each_block(model: Any, x: Tensor) -> None:
    """Layer i is the output of block i of the BlockStack, and `last` is the norm of the last layer."""
    found: list[Tensor] = []
    with _hooked(_blocks(model), lambda _, __, out: found.append(out)):
        features = model.forward_features(x)
    assert len(found) == len(features.layers), f"{len(found)} blocks ran, there are {len(features.layers)} layers"
    for layer, out in zip(features.layers, found, strict=True):
        assert layer.shape == out.shape or layer.numel() == out.numel()
        torch.testing.assert_close(layer.flatten(), out.flatten())
    if isinstance(getattr(model, "norm", None), nn.Module):
        torch.testing.assert_close(model.norm(features.layers[-1]), features.last)


def forward_reads_the_features(model: Any, x: Tensor) -> None:
    """A forward_head computes the result of forward from the features."""
    if hasattr(model, "forward_head"):
        torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))


def intermediates_select_like_timm(model: Any, x: Tensor) -> None:
    """forward_intermediates gives all layers, the last n, or those of a list, and refuses one that is not there."""
    last, every = model.forward_intermediates(x)
    torch.testing.assert_close(last, model.forward_features(x).last)
    for indices, expected in ((1, every[-1:]), ([0, -1], [every[0], every[-1]])):
        torch.testing.assert_close(model.forward_intermediates(x, indices)[1], expected)
    try:
        model.forward_intermediates(x, [len(every)])
    except ValueError:
        return
    raise AssertionError(f"layer {len(every)} of {len(every)} is not refused with a ValueError: use select_layers")


def directions_add_up(model: Any, x: Tensor) -> None:
    """The shares of all directions, brought to natural order, add up to the output of each mixer."""
    outputs: list[Tensor] = []
    with _hooked(_mixers(model), lambda _, __, out: outputs.append(out)):
        plain = model.forward_features(x)
    features = model.forward_features(x, directions=True)
    torch.testing.assert_close(features.last, plain.last)
    if not (features.orders or features.layer_orders):
        return  # attention, which has no order
    shares = features.directions
    assert all(len(parts) == len(features.layers) for parts in shares), "not one share per layer"
    assert len(outputs) == len(features.layers), f"{len(outputs)} mixers ran, there are {len(features.layers)} layers"
    for i, (mixer, out) in enumerate(zip(_mixers(model), outputs, strict=True)):
        orders = features.layer_orders[i] if features.layer_orders else features.orders
        assert len(shares) == len(orders), f"{len(shares)} directions, {len(orders)} orders"
        pairs = zip(shares, orders, strict=True)
        total: Any = sum(parts[i].index_select(1, order.inverse) for parts, order in pairs)
        bias = getattr(getattr(mixer, "out_proj", None), "bias", None)
        torch.testing.assert_close(total if bias is None else total + bias, out)


def samples_do_not_mix(model: Any, x: Tensor) -> None:
    """Output and gradient of a batch are those of its samples."""
    out = model(x)
    out.square().sum().backward()
    together = _gradients(model)
    model.zero_grad()
    for i, sample in enumerate(x):
        one = model(sample[None])
        torch.testing.assert_close(one, out[i : i + 1], atol=1e-4, rtol=1e-3)
        one.square().sum().backward()
    torch.testing.assert_close(_gradients(model), together, atol=1e-4, rtol=1e-3)


def gradients_reach_every_parameter(model: Any, x: Tensor) -> None:
    """Every parameter that requires a gradient gets one that is finite."""
    model(x).square().sum().backward()
    names = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    silent = [name for name, grad in names.items() if grad is None]
    broken = [name for name, grad in names.items() if grad is not None and not grad.isfinite().all()]
    assert not silent and not broken, f"no gradient: {silent}; not finite: {broken}"


def nothing_is_random_outside_training(model: Any, x: Tensor) -> None:
    """Two calls in evaluation mode give the same numbers, and so does a copy with the same state dict."""
    expected = model(x)
    assert torch.equal(model(x), expected), "two calls differ"
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), expected), "a model with the same state dict differs"


def spared_names_exist(model: Any, x: Tensor) -> None:
    """Every entry of no_weight_decay is the name of a parameter, or a pattern that matches one."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    lost = [entry for entry in model.no_weight_decay() if not any(fnmatchcase(name, entry) for name in names)]
    assert not lost, f"no parameter is called {', '.join(lost)}: there are {', '.join(names[:3])}, ..."


def starts_from_the_meta_device(model: Any, x: Tensor) -> None:
    """After to_empty, reset_parameters draws the same numbers as for any other model: nothing is left empty."""
    device = x.device.type
    empty = copy.deepcopy(model).to("meta").to_empty(device=x.device)
    with torch.no_grad():
        for tensor in empty.parameters():
            tensor.fill_(math.nan)
    for one in (empty, model):
        torch.manual_seed(0)
        one.reset_parameters()
    expected = model.state_dict()
    left = [name for name, value in empty.named_parameters() if value.isnan().any()]
    assert not left, f"not drawn on {device}: {', '.join(left)}"
    other = [name for name, value in empty.state_dict().items() if not torch.equal(value, expected[name])]
    assert not other, f"drawn otherwise, or a buffer that is not computed again: {', '.join(other)}"


def runs_in_bfloat16(model: Any, x: Tensor) -> None:
    """Weights and inputs in bfloat16 give bfloat16, near the result in float32."""
    expected = model(x)
    got = model.bfloat16()(x.bfloat16() if x.is_floating_point() else x)
    assert got.dtype == torch.bfloat16, f"the output is {got.dtype}"
    torch.testing.assert_close(got.float(), expected, atol=0.1 * expected.abs().max().item(), rtol=0.1)


def trains_under_autocast(model: Any, x: Tensor) -> None:
    """Under autocast to bfloat16 the result is near, and gradients have the dtypes of their parameters."""
    expected = model(x)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        got = model(x)
    torch.testing.assert_close(got.float(), expected, atol=0.1 * expected.abs().max().item(), rtol=0.1)
    got.float().square().sum().backward()
    assert all(p.grad is None or (p.grad.dtype == p.dtype and p.grad.isfinite().all()) for p in model.parameters())


def recomputed_blocks_give_the_same_gradients(model: Any, x: Tensor) -> None:
    """recompute_blocks changes the memory, and no gradient."""
    model(x).square().sum().backward()
    expected = _gradients(model)
    model.zero_grad()
    recompute_blocks(model)
    model(x).square().sum().backward()
    torch.testing.assert_close(_gradients(model), expected)


def compiles_in_one_graph(model: Any, x: Tensor) -> None:
    """torch.compile with fullgraph=True takes forward and backward."""
    compiled: Any = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    out, expected = compiled(x), model(x)
    torch.testing.assert_close(out, expected)
    for y in (out, expected):
        y.square().sum().backward()
    torch.testing.assert_close(_gradients(compiled), _gradients(model))


def exports_for_batches_of_any_size(model: Any, x: Tensor) -> None:
    """torch.export keeps the size of the batch open."""
    program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch")},)).module()
    for batch in (x, torch.cat([x, x[:1]])):
        torch.testing.assert_close(program(batch), model(batch))


_METHODS = {"forward", "forward_features", "forward_intermediates", "no_weight_decay", "reset_parameters"}
CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        has_the_methods,
        features_fit_their_grids,
        layers_are_the_stream_after_each_block,
        forward_reads_the_features,
        intermediates_select_like_timm,
        directions_add_up,
        samples_do_not_mix,
        gradients_reach_every_parameter,
        nothing_is_random_outside_training,
        spared_names_exist,
        starts_from_the_meta_device,
        runs_in_bfloat16,
        trains_under_autocast,
        recomputed_blocks_give_the_same_gradients,
        compiles_in_one_graph,
        exports_for_batches_of_any_size,
    )
}


def _prepared(model: nn.Module) -> nn.Module:
    """Copy the model, in evaluation mode and without gradients of earlier."""
    (model := copy.deepcopy(model).eval()).zero_grad()
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    blocks = [block for stack in model.modules() if isinstance(stack, BlockStack) for block in stack]
    assert blocks, "there is no BlockStack: put the blocks in one, or skip the checks that read it"
    return blocks


def _mixers(model: nn.Module) -> list[nn.Module]:
    return [mixer for block in _blocks(model) if (mixer := getattr(block, "mixer", None)) is not None]


def _gradients(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@contextmanager
def _hooked(modules: list[nn.Module], hook: Callable[[Any, Any, Any], None]) -> Iterator[None]:
    # a hook that returns something would replace the output
    handles = [module.register_forward_hook(lambda m, a, out: hook(m, a, out)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
