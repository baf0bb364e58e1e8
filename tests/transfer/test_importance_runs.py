import builtins

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transmamba.models import VisionMamba, ViT
from transmamba.transfer import (
    StabilityRecorder,
    activation_importance,
    subclone,
    taylor_importance,
    wanda_importance,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(3), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


@pytest.fixture
def batches():
    return [torch.randn(7, 3), torch.randn(2, 11, 3)]


def inputs_of(net, batches):
    """Record the rows that norm, fc1 and fc2 read, over all batches."""
    x = torch.cat([batch.flatten(0, -2) for batch in batches])
    h = net.norm(x)
    return {"norm.weight": x, "fc1.weight": h, "fc2.weight": F.gelu(net.fc1(h))}


def test_activation_is_the_mean_absolute_input(batches):
    net = Net()
    scores = activation_importance(net, batches)
    for name, rows in inputs_of(net, batches).items():
        torch.testing.assert_close(scores[name].flatten(), rows.abs().mean(0))
    assert scores["fc1.weight"].shape == (1, 3)


def test_wanda_is_the_weight_times_the_norm_of_its_input(batches):
    net = Net()
    scores = wanda_importance(net, batches)
    for name, rows in inputs_of(net, batches).items():
        torch.testing.assert_close(scores[name], net.get_parameter(name).abs() * rows.norm(dim=0))


def test_taylor_is_the_weight_times_its_gradient(batches):
    net = Net()
    scores = taylor_importance(net, batches, lambda model, batch: model(batch).square().mean())
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for batch in batches:
        net.zero_grad()
        net(batch).square().mean().backward()
        for name, p in net.named_parameters():
            expected[name] += (p * p.grad).abs().detach()
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name])


def test_taylor_predicts_the_loss_without_a_weight():
    net, x = Net().double(), torch.randn(7, 3, dtype=torch.float64)
    loss = lambda model, batch: model(batch).sum()  # noqa: E731
    score = taylor_importance(net, [x], loss)["fc2.weight"][1, 3]
    before = loss(net, x)
    with torch.no_grad():
        net.fc2.weight[1, 3] = 0
    torch.testing.assert_close(score, (loss(net, x) - before).abs())  # exact: the loss is linear in fc2


def test_the_recorder_counts_the_way_and_not_the_distance():
    net = Net()
    recorder = StabilityRecorder(net)
    for step in (1.0, -1.0, 0.5):
        with torch.no_grad():
            net.fc1.bias[2] += step
        recorder.update()
    scores = recorder.importance()
    assert scores["fc1.bias"].tolist() == [0.0, 0.0, -2.5, 0.0, 0.0]
    assert scores["fc2.weight"].eq(0).all()


def test_a_neuron_that_never_fires_goes_first(batches):
    net, student = Net(), nn.ModuleDict({"fc1": nn.Linear(3, 4), "fc2": nn.Linear(4, 2)})
    with torch.no_grad():
        net.fc1.weight[1], net.fc1.bias[1] = 0.0, 0.0
    plan = {
        "fc1.weight": ("fc1.weight", "hidden ."),
        "fc1.bias": ("fc1.bias", "hidden"),
        "fc2.weight": ("fc2.weight", "class hidden"),
        "fc2.bias": ("fc2.bias", "class"),
    }
    loss = lambda model, batch: model(batch).square().sum()  # noqa: E731
    for scores in (
        activation_importance(net, batches),
        wanda_importance(net, batches),
        taylor_importance(net, batches, loss),
    ):
        assert subclone(net, student, scores, plan=plan).kept == {"hidden": (0, 2, 3, 4)}


def test_scores_of_a_vit_serve_a_vision_student():
    teacher = ViT(img_size=8, patch_size=2, dim=12, depth=2, heads=3, num_classes=5)
    images = [torch.randn(2, 3, 8, 8)]
    for scores in (activation_importance(teacher, images), wanda_importance(teacher, images)):
        student = VisionMamba(img_size=8, patch_size=2, dim=8, depth=2, num_classes=5)
        report = subclone(teacher, student, scores)
        assert len(report.kept["residual"]) == 8


def test_batches_may_be_tuples_and_dictionaries():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x, scale):
            return self.fc(scale * x)

    x, scale = torch.randn(7, 3), torch.tensor(2.0)
    one = activation_importance(Two(), [(x, scale)])
    two = activation_importance(Two(), [{"x": x, "scale": scale}])
    torch.testing.assert_close(one["fc.weight"], two["fc.weight"])


def test_the_teacher_is_as_before(batches):
    net = Net().train()
    net.fc2.eval()
    state = {name: p.clone() for name, p in net.named_parameters()}
    activation_importance(net, batches)
    taylor_importance(net, batches, lambda model, batch: model(batch).sum())
    assert net.training
    assert not net.fc2.training
    assert not any(module._forward_pre_hooks for module in net.modules())
    for name, p in net.named_parameters():
        assert p.grad is None
        assert torch.equal(p, state[name])


def test_it_runs_without_tqdm_and_without_a_bar(batches, monkeypatch, capsys):
    activation_importance(Net(), batches, progress=False)
    assert capsys.readouterr().err == ""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert activation_importance(Net(), batches)


def test_the_bar_counts_batches(batches, capsys):
    pytest.importorskip("tqdm")
    activation_importance(Net(), batches)
    assert "importance" in capsys.readouterr().err


def test_nothing_to_run_or_to_score_is_refused():
    with pytest.raises(ValueError, match="no batch to run the teacher on"):
        activation_importance(Net(), [])
    with pytest.raises(ValueError, match="GELU ran no linear layer and no norm"):
        activation_importance(nn.GELU(), [torch.ones(3)])
    with pytest.raises(ValueError, match="no parameter of the teacher requires a gradient"):
        taylor_importance(Net().requires_grad_(False), [torch.ones(3)], lambda model, batch: model(batch).sum())
    with pytest.raises(ValueError, match="the loss depends on no parameter of the teacher"):
        taylor_importance(Net(), [torch.ones(3)], lambda model, batch: batch.sum().requires_grad_())
