import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from transmamba.distill import tap


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mixer = nn.Linear(dim, dim)

    def forward(self, x):
        return x + self.mixer(x)


class Net(nn.Module):
    """The shape of a timm model."""

    def __init__(self, dim=3, depth=3, block=Block):
        super().__init__()
        self.blocks = nn.ModuleList(block(dim) for _ in range(depth))
        self.head = nn.Linear(dim, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class PairBlock(nn.Module):
    """The shape of mamba-ssm, Vim and VideoMamba: the sum is left to the next block."""

    def __init__(self, dim):
        super().__init__()
        self.mixer = nn.Linear(dim, dim)

    def forward(self, hidden, residual=None):
        residual = hidden if residual is None else hidden + residual
        return self.mixer(residual), residual


class PairNet(Net):
    def __init__(self):
        super().__init__(block=PairBlock)

    def forward(self, x):
        residual = None
        for block in self.blocks:
            x, residual = block(x, residual)
        return self.head(x + residual)


class FusedBlock(Block):
    """The shape of a fused path: the child's weight is used, the child is not called."""

    def forward(self, x):
        return x + nn.functional.linear(x, self.mixer.weight, self.mixer.bias)


def streams(net, x):
    return [x := block(x) for block in net.blocks]


# the records


def test_tap_on_blocks_gives_the_streams_in_order():
    net, x = Net(), torch.randn(2, 5, 3)
    with tap(net, "blocks.*") as features:
        net(x)
    assert list(features) == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(map(torch.equal, features.layers, streams(net, x)))


def test_tap_on_mixers_gives_what_they_add():
    net, x = Net(), torch.randn(2, 5, 3)
    with tap(net, ["blocks.*", "blocks.*.mixer"]) as features:
        net(x)
    torch.testing.assert_close(features["blocks.1"] - features["blocks.0"], features["blocks.1.mixer"])


def test_residual_point_adds_the_input():
    net, x = Net(), torch.randn(2, 5, 3)
    with tap(net, "blocks.*.mixer", point="residual") as mixed, tap(net, "blocks.*") as features:
        net(x)
    for one, other in zip(mixed.layers, features.layers, strict=True):
        torch.testing.assert_close(one, other)


def test_input_point_is_what_the_block_read():
    net, x = Net(), torch.randn(2, 5, 3)
    with tap(net, "blocks.*", point="input") as features:
        net(x)
    assert features["blocks.0"] is x


def test_pairs_of_hidden_and_residual_are_summed():
    net, x = PairNet(), torch.randn(2, 5, 3)
    with tap(net, "blocks.*") as features:
        net(x)
    expected, stream = [], x
    for block in net.blocks:
        stream = stream + block.mixer(stream)
        expected.append(stream)
    for one, other in zip(features.layers, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_select_reads_unusual_outputs():
    class Unusual(nn.Module):
        def forward(self, x):
            return {"tokens": x, "loss": 0.0}

    net, x = nn.Sequential(Unusual()), torch.randn(2, 3)
    with tap(net, "*", select=lambda output: output["tokens"]) as features:
        net(x)
    assert features["0"] is x
    with (
        pytest.raises(TypeError, match=r"module '0' returned a dict: say which tensor you mean with select="),
        tap(net, "*"),
    ):
        net(x)


def test_input_of_a_module_without_tensors_is_refused():
    class Constant(nn.Module):
        def forward(self):
            return torch.ones(1)

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.constant = Constant()

        def forward(self):
            return self.constant()

    net = Holder()
    with pytest.raises(TypeError, match=r"module 'constant' was called without a tensor: tap its output"):
        with tap(net, "constant", point="input"):
            net()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["blocks", "head"]),
        ("blocks.*", ["blocks.0", "blocks.1", "blocks.2"]),
        ("**.mixer", ["blocks.0.mixer", "blocks.1.mixer", "blocks.2.mixer"]),
        ("**.head", ["head"]),
        ("**.1", ["blocks.1"]),
    ],
)
def test_star_stands_for_one_part_of_a_name(pattern, names):
    from transmamba.distill.taps import _find

    assert list(_find(Net(), [pattern])) == names


# a training loop


def test_each_forward_forgets_the_one_before():
    net, first, second = Net(), torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    with tap(net, "blocks.*") as features:
        net(first)
        net(second)
    assert all(map(torch.equal, features.layers, streams(net, second)))


def test_gradients_flow_into_a_student():
    net = Net()
    with tap(net, "blocks.*") as features:
        net(torch.randn(2, 5, 3))
    sum(layer.square().sum() for layer in features.layers).backward()
    assert all(block.mixer.weight.grad.abs().sum() > 0 for block in net.blocks)


def test_frozen_teacher_keeps_no_graph():
    net = Net().eval().requires_grad_(False)
    with tap(net, "blocks.*", frozen=True) as features:
        net(torch.randn(2, 5, 3, requires_grad=True))
    assert not any(layer.requires_grad or layer.grad_fn for layer in features.layers)


def test_nothing_is_left_behind():
    net = Net()
    with tap(net, "blocks.*") as features:
        net(torch.randn(2, 5, 3))
    assert not net._forward_pre_hooks
    assert not any(module._forward_hooks for module in net.modules())
    alive = weakref.ref(features.layers[0])
    del features
    gc.collect()
    assert alive() is None


def test_hooks_go_even_if_the_forward_fails():
    net = Net()
    with pytest.raises(RuntimeError, match="shapes"), tap(net, "blocks.*"):
        net(torch.randn(2, 5, 7))
    assert not any(module._forward_hooks for module in net.modules())


def test_shared_module_is_not_overwritten_in_silence():
    net = nn.Sequential(*[nn.Linear(3, 3)] * 2)
    with tap(net, "0") as features:
        net(torch.randn(2, 3))
    assert len(features.calls("0")) == 2
    with pytest.raises(RuntimeError, match=r"module '0' was called 2 times in one forward: read calls\('0'\)"):
        features["0"]


class ReentrantNet(Net):
    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True)
        return self.head(x)


class CheckpointedNet(Net):
    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def test_recomputation_in_the_backward_is_not_recorded():
    net, plain, x = CheckpointedNet(), Net(), torch.randn(2, 5, 3, requires_grad=True)
    plain.load_state_dict(net.state_dict())
    for model in (net, plain):
        with tap(model, "blocks.*") as features:
            loss = model(x).sum() + sum(layer.square().sum() for layer in features.layers)
            loss.backward()
            assert all(len(features.calls(name)) == 1 for name in features)
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_recomputing_the_whole_model_keeps_its_features():
    net, x = Net(), torch.randn(2, 5, 3, requires_grad=True)
    with tap(net, "blocks.*") as features:
        loss = checkpoint(net, x, use_reentrant=False).sum()
        before = features.layers
        loss.backward()
    assert all(one is other for one, other in zip(features.layers, before, strict=True))


def test_reentrant_checkpoint_is_refused():
    net = ReentrantNet()
    message = r"module 'blocks.0' ran without gradient inside a forward that has it: a re-entrant checkpoint"
    with pytest.raises(RuntimeError, match=message), tap(net, "blocks.*"):
        net(torch.randn(2, 5, 3, requires_grad=True))


def test_evaluation_without_gradient_is_fine():
    net = Net()
    with tap(net, "blocks.*") as features, torch.no_grad():
        net(torch.randn(2, 5, 3))
    assert not any(layer.requires_grad for layer in features.layers)


# never silence


def test_bypassed_child_is_an_error():
    net = Net(block=FusedBlock)
    with pytest.raises(RuntimeError, match=r"module 'blocks.0.mixer' was never called \(3 of 3 taps silent\): either"):
        with tap(net, "blocks.*.mixer"):
            net(torch.randn(2, 3))


def test_projection_that_attention_uses_without_calling_is_an_error():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    net = Attention()
    with pytest.raises(RuntimeError, match=r"module 'attention.out_proj' was never called"), tap(net, "**.out_proj"):
        net(torch.randn(2, 5, 6))


def test_reading_before_a_forward_is_an_error():
    net = Net()
    with pytest.raises(RuntimeError, match=r"module 'blocks.0' was never called"), tap(net, "blocks.*") as features:
        features["blocks.0"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["wrapper", "in place", "child"])
def test_compiled_models_are_refused(how):
    net = Net()
    if how == "wrapper":
        net = torch.compile(net, backend="eager")
    elif how == "in place":
        net.compile(backend="eager")
    else:
        net.blocks[1] = torch.compile(net.blocks[1], backend="eager")
    with pytest.raises(RuntimeError, match=r"is compiled and would ignore the tap: tap the model first and compile it"):
        with tap(net, "**.mixer"):
            pass


def test_graph_compiled_before_the_tap_is_an_error():
    """pytorch 117758, 173452."""
    net, x = Net(), torch.randn(2, 3)
    step = torch.compile(lambda x: net(x), backend="eager")
    step(x)
    try:
        with tap(net, "blocks.*") as features:
            step(x)
    except RuntimeError as error:
        assert "was never called (3 of 3 taps silent)" in str(error)
    else:
        # a dynamo that notices the hooks recompiles, and then the features must be there
        assert all(map(torch.equal, features.layers, streams(net, x)))


def test_model_compiled_inside_the_tap_is_heard_with_gradient():
    net, x = Net(), torch.randn(2, 3)
    expected = streams(net, x)
    with tap(net, "blocks.*") as features:
        compiled = torch.compile(net, backend="aot_eager")
        compiled(torch.randn(2, 3))
        compiled(x)
    for one, other in zip(features.layers, expected, strict=True):
        torch.testing.assert_close(one, other)
    features.layers[-1].sum().backward()
    assert net.blocks[0].mixer.weight.grad.abs().sum() > 0


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"no module matches 'block.\*': the model's children are blocks, head"):
        with tap(Net(), "block.*"):
            pass
    with pytest.raises(ValueError, match=r"unknown point 'middle': expected output, input or residual"):
        with tap(Net(), "blocks.*", point="middle"):
            pass
    net = Net()
    with pytest.raises(KeyError, match=r"no tap on 'head': tapped are blocks.0"), tap(net, "blocks.0") as features:
        net(torch.randn(2, 3))
        features["head"]


def test_teacher_that_requires_grad_is_refused():
    message = (
        r"^teacher parameter 'blocks.0.mixer.weight' requires grad: freeze it first, model.requires_grad_\(False\)"
    )
    with pytest.raises(ValueError, match=message), tap(Net(), "blocks.*", frozen=True):
        pass


def test_teacher_in_training_mode_is_refused():
    net = Net().eval().requires_grad_(False)
    net.blocks[1].train()
    message = r"teacher module 'blocks.1' is in training mode, .*: call model.eval\(\), or tap with frozen=False"
    with pytest.raises(ValueError, match=message), tap(net, "blocks.*", frozen=True):
        pass


# models of others: hidden_states means something else in each family, a tap on the blocks does not

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 16, "patch_size": 8}
TEXT = {"vocab_size": 50}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "options", "pattern", "offset"),
    [
        ("ViT", SIZES | IMAGE, "**.layers.*", 1),
        ("DeiT", SIZES | IMAGE, "**.layers.*", 1),
        ("CLIPVision", SIZES | IMAGE, "**.layers.*", 1),
        ("Bert", SIZES | TEXT, "**.layer.*", 1),
        ("Llama", SIZES | TEXT, "layers.*", 1),
        ("Mamba", {"hidden_size": 16, "num_hidden_layers": 3, "state_size": 5} | TEXT, "layers.*", 0),
    ],
)
def test_hugging_face_blocks(family, options, pattern, offset):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(**options)
    model = getattr(transformers, f"{family}Model")(config).eval()
    given = torch.randn(2, 3, 16, 16) if "image_size" in options else torch.arange(7)[None]
    with tap(model, pattern) as features:
        states = model(given, output_hidden_states=True).hidden_states
    assert len(features) == 3
    # the last entry is normalised in some families, so only the first two streams stand in every list
    for number in range(2):
        assert torch.equal(features.layers[number], states[number + offset])
    last = features.layers[-1]
    final = (
        next(module for name, module in model.named_modules() if name in ("norm", "norm_f"))
        if family in ("Llama", "Mamba")
        else nn.Identity()
    )
    torch.testing.assert_close(final(last), states[-1])
    features.layers[0].sum().backward()
    assert any(parameter.grad is not None for parameter in model.parameters())
