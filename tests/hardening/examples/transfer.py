"""Examples of `transmamba.transfer`."""

from functools import partial

import torch

from tests.hardening.examples.sizes import Call
from transmamba import models, nn, transfer
from transmamba.transfer.teachers.own import read_own_transformer


def _pair(s):
    teacher = models.ViT(8, 4, dim=2 * s["dim"], depth=2, heads=s["dim"], num_classes=s["classes"])
    student = models.VisionMamba(8, 4, dim=s["dim"], depth=1, num_classes=s["classes"])
    return teacher, student


def subclone(s):
    teacher, student = _pair(s)
    return Call(transfer.subclone, {
        "teacher": s.choice(teacher, teacher.state_dict()), "student": student,
        "importance": s.choice(transfer.magnitude_importance, {n: p.abs() for n, p in teacher.named_parameters()}),
        "plan": None, "layer_map": s.choice("early", "uniform", [1], {0: 1}), "rescale": s.choice(None, "sqrt"),
        "exclude": s.choice(None, ["head.*"]), "grow": s.choice(True, False), "ssm_from": None,
    })  # fmt: skip


def AttentionInit(s):
    return Call(transfer.AttentionInit, {"heads": 2 * s["head"], "length": s["length"], "kv_heads": s["head"],
                                         "decay": 0.01})  # fmt: skip


def init_convolutions(s):
    start = s.choice("normal", "identity")
    return Call(transfer.init_convolutions, {"student": _pair(s)[1], "start": start, "std": 0.5})


def param_groups(s):
    student = _pair(s)[1]
    return Call(transfer.param_groups, {
        "student": student, "inherited": {"head.weight"}, "lr": 0.1, "inherited_lr": 0.01, "weight_decay": 0.1,
    })  # fmt: skip


def freeze(s):
    return Call(transfer.freeze, {"student": _pair(s)[1], "names": ["head.weight"], "frozen": True})


def _importance(s, function, **more):
    teacher, _ = _pair(s)
    return Call(function, {"teacher": teacher, "batches": [s.normal("batch 3 8 8")], **more, "progress": False})


def activation_importance(s):
    return _importance(s, transfer.activation_importance)


def wanda_importance(s):
    return _importance(s, transfer.wanda_importance)


def taylor_importance(s):
    return _importance(s, transfer.taylor_importance, loss=lambda teacher, batch: teacher(batch).square().mean())


def stability_importance(s):
    teacher, _ = _pair(s)
    after = {name: p.detach() + 1 for name, p in teacher.named_parameters()}
    return Call(transfer.stability_importance, {
        "before": teacher, "after": after, "change": s.choice("absolute", "relative", "squared"),
    })  # fmt: skip


def StabilityRecorder(s):
    return Call(transfer.StabilityRecorder, {"teacher": _pair(s)[0]})


def translate(s):
    own = transfer.Family("own", "ours", (), "blocks.0.attn.qkv.weight", read_own_transformer)
    return Call(transfer.translate, {
        "teacher": _pair(s)[0], "family": s.choice(None, "transmamba_transformer", own), "config": None,
        "kind": s.choice(None, "image"),
    })  # fmt: skip


def plan_for(s):
    teacher, student = _pair(s)
    return Call(transfer.plan_for, {
        "teacher": teacher, "student": student, "family": s.choice(None, "transmamba_transformer"),
        "layer_map": s.choice("early", "uniform", [1], {0: 1}),
    })  # fmt: skip


def bind(s):
    return Call(transfer.bind, {"plan": {"a": ("a", "residual head*head_dim")}, "head_dim": s["dim"]})


def _hybrid(s):
    mixer = partial(nn.Attention, heads=s["heads"], causal=True)
    dim = 2 * s["heads"]
    teacher = models.MambaLM(11, dim, depth=2, mixer=mixer, d_intermediate=4)
    # one text holds more tokens than the readout has inputs
    return teacher, models.replace_mixers(teacher, {1: nn.MambaMixer}), torch.arange(44).view(4, 11) % 11


def fit_layers(s):
    teacher, student, ids = _hybrid(s)
    return Call(transfer.fit_layers, {
        "teacher": teacher, "student": student, "batches": [ids], "layers": s.choice(None, [1]),
        "layer_map": s.choice("uniform", {0: 0, 1: 1}), "target": s.choice("stream", "block", "own"),
        "mlp": s.choice(None, False), "projection": None, "tokens": None, "ridge": 0.01,
        "min_tokens": s.choice(None, 1), "weighting": s.choice("equal", "relative"),
        "keep_streams": s.choice(True, False), "checkpoint": None, "process_group": None, "progress": False,
    })  # fmt: skip


def fit_stages(s):
    teacher = models.ViT(32, 8, dim=4, depth=2, heads=1, num_classes=2)
    projections = [torch.eye(2, 4), torch.eye(4)]
    return Call(transfer.fit_stages, {
        "teacher": teacher, "student": models.vmamba_v2((2, 4), (1, 1), num_classes=2),
        "batches": [torch.randn(8, 3, 32, 32)], "projections": s.choice(None, projections),
        "layer_map": s.choice("uniform", [0, 1]), "inputs": s.choice(True, False), "checkpoint": None,
        "ridge": 0.01, "min_tokens": 1, "progress": False,
    })  # fmt: skip


def LayerFit(s):
    teacher, student, ids = _hybrid(s)
    return Call(transfer.LayerFit, {
        "teacher": teacher, "student": student, "batches": [ids], "layer_map": "uniform", "target": "stream",
        "projection": None, "tokens": None, "weighting": "equal", "keep_streams": True, "process_group": None,
    })  # fmt: skip


def LeastSquares(s):
    return Call(
        transfer.LeastSquares, {"features": s["features"], "targets": s["targets"], "bias": s.choice(True, False)}
    )


def principal_axes(s):
    teacher, _, ids = _hybrid(s)
    return Call(transfer.principal_axes, {"teacher": teacher, "batches": [ids], "dim": 1})


def project_start(s):
    image = {"img_size": 4, "patch_size": 2, "num_classes": 2}
    return Call(transfer.project_start, {
        "teacher": models.ViT(**image, dim=4, depth=2, heads=1), "student": models.VisionMamba(**image, dim=2, depth=1),
        "projection": torch.eye(4)[:2], "layer_map": s.choice("uniform", {0: 1}),
    })  # fmt: skip


def sensitivity(s):
    model, _, ids = _hybrid(s)
    return Call(transfer.sensitivity, {
        "model": model, "evaluate": lambda lm: float(lm(ids).abs().mean()), "layers": s.choice(None, [1]),
        "replace": None, "progress": False,
    })  # fmt: skip


def mixer_pairs(s):
    teacher, _, ids = _hybrid(s)
    return Call(transfer.mixer_pairs, {"teacher": teacher, "batches": [ids], "layers": s.choice(None, [1])})


def fit_mixers(s):
    teacher, student, ids = _hybrid(s)
    return Call(transfer.fit_mixers, {
        "teacher": teacher, "mixers": {1: student.blocks[1].mixer}, "batches": [ids], "ridge": s.choice(1e-3, 1.0),
        "min_tokens": s.choice(None, 1), "products": torch.float32,
    })  # fmt: skip
