"""Each check of a backbone holds for one of ours, and fails for one that breaks this promise alone."""

import pytest
import torch
from torch import nn

from tests.contracts.backbones import build
from transmamba.models import Vim, VisionMamba
from transmamba.models.stack import reset_children
from transmamba.testing import CHECKS, check_backbone


class Small(VisionMamba):
    def __init__(self):
        super().__init__(img_size=8, patch_size=4, dim=12, depth=2, num_classes=5, d_state=3)


class NoReset(Small):
    reset_parameters = None


class WrongGrid(Small):
    def forward_features(self, x, directions=False):
        return super().forward_features(x, directions)._replace(grid=(2, 3))


class Backwards(Small):
    def forward_features(self, x, directions=False):
        features = super().forward_features(x, directions)
        return features._replace(layers=features.layers[::-1])


class OtherHead(Small):
    def forward_head(self, features):
        return self.head(features.mean(1) if isinstance(features, torch.Tensor) else features.last[:, 0])


class Lenient(Small):
    def forward_intermediates(self, x, indices=None):
        return super().forward_intermediates(x, [0] if indices == [2] else indices)


class Doubled(Small):
    def forward_features(self, x, directions=False):
        features = super().forward_features(x, directions)
        return features._replace(directions=tuple(tuple(2 * s for s in k) for k in features.directions))


class Mixing(Small):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class Unused(Small):
    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(2, 2)


class Random(Small):
    def forward(self, x):
        return super().forward(x + torch.rand(()))


class Misspelt(Small):
    def no_weight_decay(self):
        return {"pos_embed", "*.A_logs"}


class HalfReset(Small):
    def reset_parameters(self):
        reset_children(self)


class Single(Small):
    def forward(self, x):
        return super().forward(x).float()


class Louder(Small):
    def forward(self, x):
        return super().forward(x) * (3 if torch.is_autocast_enabled(x.device.type) else 1)


class Recomputing(Small):
    def forward(self, x):
        return super().forward(x) * (2 if self.blocks.recompute else 1)


class Broken(Small):
    def forward(self, x):
        torch._dynamo.graph_break()
        return super().forward(x)


class Fixed(Small):
    def forward(self, x):
        return super().forward(x.view(2, *x.shape[1:]) if x.shape[0] > 1 else x)


BREAKS = {
    "has_the_methods": (NoReset, "missing: reset_parameters"),
    "features_fit_their_grids": (WrongGrid, r"layer 0 is \(2, 4, 12\), its grid \(2, 3\) and 0 extra tokens are 6"),
    "layers_are_the_stream_after_each_block": (Backwards, "not close"),
    "forward_reads_the_features": (OtherHead, "not close"),
    "intermediates_select_like_timm": (Lenient, "layer 2 of 2 is not refused with a ValueError: use select_layers"),
    "directions_add_up": (Doubled, "not close"),
    "samples_do_not_mix": (Mixing, "not close"),
    "gradients_reach_every_parameter": (Unused, r"no gradient: \['extra.weight', 'extra.bias'\]; not finite: \[\]"),
    "nothing_is_random_outside_training": (Random, "two calls differ"),
    "spared_names_exist": (Misspelt, r"no parameter is called \*\.A_logs: there are pos_embed"),
    "starts_from_the_meta_device": (HalfReset, "not drawn on cpu: pos_embed"),
    "runs_in_bfloat16": (Single, "the output is torch.float32"),
    "trains_under_autocast": (Louder, "not close"),
    "recomputed_blocks_give_the_same_gradients": (Recomputing, "not close"),
    "compiles_in_one_graph": (Broken, "graph_break"),
    "exports_for_batches_of_any_size": (Fixed, "batch"),
}


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


def test_every_check_has_a_promise_and_a_model_that_breaks_it():
    assert set(BREAKS) == set(CHECKS) and all(check.__doc__ for check in CHECKS.values())


@pytest.mark.parametrize("name", CHECKS)
def test_a_broken_promise_is_found(name, x):
    torch._dynamo.reset()
    broken, message = BREAKS[name]
    with pytest.raises(Exception, match=message):
        CHECKS[name](broken().eval(), x)


def test_a_model_says_where_its_class_tokens_are(x):
    class Silent(Vim):
        extra_tokens = ()

        def forward_features(self, x, directions=False):
            return super().forward_features(x, directions)._replace(extra=self.cls_positions)

    message = r"class tokens are at \(2,\), the model's `extra_tokens` are \(\)"
    with pytest.raises(AssertionError, match=message):
        CHECKS["features_fit_their_grids"](Silent(8, 4, dim=12, depth=2, num_classes=5).eval(), x)


@pytest.mark.parametrize("name", ["vim", "vit", "vmamba_v2", "vmamba_v0", "plain_mamba"])
def test_backbones_of_the_library_pass(name):
    model, x = build(name)
    assert len(check_backbone(model, x, skip=["compiles_in_one_graph", "exports_for_batches_of_any_size"])) == 14


def test_all_failures_are_in_one_message(x):
    class Two(Unused, Misspelt):
        pass

    model = Two().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    skip = ["compiles_in_one_graph", "exports_for_batches_of_any_size"]
    with pytest.raises(AssertionError, match=r"(?s)Two fails 2 of 14 checks\ngradients_reach.*\nspared_names") as error:
        check_backbone(model, x, skip=skip)
    assert "Every entry of no_weight_decay is the name of a parameter" in str(error.value)
    # on a copy: nothing of the model has changed
    assert model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_that_shows_nothing_is_refused(x):
    for batch in (x[:1], x[:1].repeat(2, 1, 1, 1)):
        with pytest.raises(ValueError, match="expected a batch of at least two different inputs"):
            check_backbone(Small(), batch)


def test_a_check_that_is_not_there_cannot_be_skipped(x):
    with pytest.raises(ValueError, match="skip names no check: compiles; expected some of has_the_methods, "):
        check_backbone(Small(), x, skip=["compiles"])
