"""Examples of `transmamba.transfer`."""

from tests.hardening.examples.sizes import Call
from transmamba import models, transfer
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
        "before": teacher, "after": after, "measure": s.choice("absolute", "relative", "squared"),
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
