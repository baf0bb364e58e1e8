"""Examples of `transmamba.distill`."""

import torch
from torch import nn

from tests.hardening.examples.sizes import Call
from transmamba import distill, models


def _layers(s, count=2):
    return [s.normal("batch length dim") for _ in range(count)]


def AdaptiveLayerDistill(s):
    return Call(
        distill.AdaptiveLayerDistill,
        {"similarity": s.choice("token", "flatten", "pooled"), "weighting": s.choice("ratio", "neg_cos", "uniform"),
         "tau": 1.0, "eps": 0.01, "detach_weights": s.choice(True, False), "weight_scope": s.choice("batch", "sample"),
         "scale": s.choice("sum1", "mean_N"), "teacher_layers": "last", "process_group": None},
        {"student": _layers(s), "teacher": s.normal("batch length dim"),
         "mask": s.choice(None, s.mask("batch length")), "return_details": s.choice(True, False)},
    )  # fmt: skip


def BidirectionalDistill(s):
    return Call(
        distill.BidirectionalDistill,
        {"inner": None, "order": s.choice("scan", "raster"), "reduction": "mean",
         "direction_weights": {"forward": 1.0, "backward": 0.5}},
        {"forward": _layers(s), "backward": _layers(s), "teacher": s.normal("batch length dim"),
         "mask": s.choice(None, s.mask("batch length")), "return_details": True, "order": None},
    )  # fmt: skip


def MultiDirectionalDistill(s):
    grid = (s["row"], s["column"])
    layers = [s.normal(f"batch {grid[0] * grid[1]} dim") for _ in range(2)]
    return Call(
        distill.MultiDirectionalDistill,
        {"inner": None, "order": "scan", "reduction": "sum", "direction_weights": None},
        {"student": {"column": layers, "raster_reverse": layers}, "teacher": layers[0], "mask": None, "grid": grid,
         "order": None, "orders": None, "return_details": False},
    )  # fmt: skip


def TransMambaLoss(s):
    return Call(
        distill.TransMambaLoss, {"task_weight": 0.5, "distill_weight": 2.0},
        {"task": s.normal("1")[0], "distill": s.normal("1")[0]},
    )  # fmt: skip


def FeatureCalibrator(s):
    return Call(
        distill.FeatureCalibrator,
        {"student_dim": s["dim"], "teacher_dim": s["context"], "mode": s.choice("pad_mlp", "linear", "pad"),
         "pad": s.choice("right", "center"), "hidden_dim": s.choice(None, 3), "depth": 2, "activation": nn.GELU,
         "bias": True, "residual": s.choice(True, False), "norm": s.choice(None, "layer", "standardize"),
         "on_wider": "project", "device": None, "dtype": None},
        {"x": s.normal("batch length dim")},
    )  # fmt: skip


def LayerCalibrators(s):
    return Call(
        distill.LayerCalibrators,
        {"student_dims": [s["dim"]] * 2, "teacher_dim": s["context"], "shared": s.choice(True, False),
         "pad": "right", "recompute": s.choice(True, False)},
        {"student": _layers(s)},
    )  # fmt: skip


def LogitsDistill(s):
    return Call(
        distill.LogitsDistill,
        {"temperature": 2.0, "divergence": s.choice("forward", "reverse", "js"), "beta": 0.5,
         "chunk": s.choice(None, 2)},
        {"student": s.normal("batch length classes"), "teacher": s.normal("batch length classes"),
         "mask": s.choice(None, s.mask("batch length"))},
    )  # fmt: skip


def HiddenLogitsDistill(s):
    return Call(
        distill.HiddenLogitsDistill,
        {"temperature": 2.0, "divergence": s.choice("forward", "reverse", "js"), "beta": 0.5, "chunk": 2},
        {"student": s.normal("batch length dim"), "student_head": s.normal("classes dim"),
         "teacher": s.normal("batch length context"), "teacher_head": s.normal("classes context"),
         "mask": s.choice(None, s.mask("batch length"))},
    )  # fmt: skip


def LastFeatureDistill(s):
    return Call(
        distill.LastFeatureDistill, {"criterion": s.choice("cosine", "mse")},
        {"student": s.normal("batch length dim"), "teacher": s.normal("batch length dim"), "mask": None},
    )  # fmt: skip


def LayerwiseDistill(s):
    return Call(
        distill.LayerwiseDistill,
        {"criterion": s.choice("cosine", "mse"), "teacher_layers": s.choice("uniform", [0, 2], {0: 0, 1: 2})},
        {"student": _layers(s), "teacher": _layers(s, 3), "mask": s.choice(None, s.mask("batch length"))},
    )


def OfficialRepoLoss(s):
    pooled = s.normal("batch dim")
    return Call(
        distill.OfficialRepoLoss, {"tau": 2.0, "final_weight": 3.0},
        {"task": s.normal("1")[0], "final": pooled, "layers": [pooled, pooled], "teacher": s.normal("batch dim")},
    )  # fmt: skip


def OFADistill(s):
    return Call(
        distill.OFADistill, {"gamma": 1.5, "temperature": 1.0},
        {"student": s.normal("batch classes"), "teacher": s.normal("batch classes"),
         "target": s.whole("batch", s["classes"])},
    )  # fmt: skip


def MixingMatrixDistill(s):
    matrices = [s.normal("batch head length length")] * 2
    return Call(
        distill.MixingMatrixDistill, {"relative": s.choice(True, False)},
        {"student": matrices, "teacher": [s.normal("batch head length length")] * 2},
    )  # fmt: skip


def align_tokens(s):
    grid = (s["row"], s["column"])
    tokens = grid[0] * grid[1]
    return Call(distill.align_tokens, {
        "student": s.normal(f"batch {tokens + 1} dim"), "teacher": s.normal("batch 6 context"), "student_prefix": 1,
        "teacher_prefix": s.choice(2, [0, -1]), "prefix_position": "front", "student_grid": grid,
        "teacher_grid": (2, 2), "resize": s.choice("student", "teacher"), "interpolation": "bilinear",
    })  # fmt: skip


def align_layers(s):
    return Call(distill.align_layers, {
        "student": [s.normal("batch 6 dim"), s.normal("batch 4 dim")], "teacher": s.normal("batch 9 context"),
        "student_grids": [(2, 3), (2, 2)], "teacher_grid": (3, 3), "interpolation": "area",
    })  # fmt: skip


def _features(s):
    model = models.Vim(8, 4, dim=4, depth=2, d_state=2, num_classes=2)
    return model.forward_features(s.normal("batch 3 8 8"), directions=True)


def natural_shares(s):
    return Call(distill.natural_shares, {"features": _features(s), "grid": s.choice(None, (3, 2)),
                                         "interpolation": "bilinear"})  # fmt: skip


def check_layouts(s):
    features = _features(s)
    return Call(distill.check_layouts, {"student": features, "teacher": features})


def DirectionBridge(s):
    student, teacher = _features(s), distill.Tokens(s.normal("batch 6 context"), (2, 2), (0, 1))
    return Call(distill.DirectionBridge,
                {"student": student, "teacher": teacher, "pad": s.choice("right", ["right", "center"]),
                 "interpolation": "bilinear"},
                {"student": student, "teacher": teacher})  # fmt: skip


def drop_tokens(s):
    return Call(distill.drop_tokens, {
        "x": s.normal("batch 6 dim"), "special": s.choice(2, [0, -1]), "position": s.choice("front", "middle", "both"),
    })  # fmt: skip


def flatten_map(s):
    return Call(distill.flatten_map, {
        "x": s.normal("batch dim row column"), "layout": s.choice("channels_first", "channels_last"),
    })  # fmt: skip


def resize_tokens(s):
    grid = (s["row"], s["column"])
    return Call(distill.resize_tokens, {
        "x": s.normal(f"batch {grid[0] * grid[1]} dim"), "grid": grid, "target": (s["length"], 2),
        "interpolation": s.choice("bilinear", "bicubic", "area", "nearest"),
    })  # fmt: skip


def align_text(s):
    mask = s.mask("batch length")
    return Call(distill.align_text, {
        "student": s.normal("batch length dim"), "teacher": s.normal("batch length context"), "student_mask": mask,
        "teacher_mask": mask.flip(1),
    })  # fmt: skip


def match_layers(s):
    return Call(distill.match_layers, {
        "student": _layers(s), "teacher": _layers(s, 3),
        "teacher_layers": s.choice("last", "uniform", "proportional", "similarity", [0, -1], {0: 0, 1: 2}),
    })  # fmt: skip


def align_image_text(s):
    grid = (s["row"], s["column"])
    image = torch.tensor([[True] * (grid[0] * grid[1]) + [False] * s["length"]] * s["batch"])
    teacher = torch.tensor([[True] * 4 + [False] * s["length"]] * s["batch"])
    return Call(distill.align_image_text, {
        "student": s.normal(f"batch {image.shape[1]} dim"), "teacher": s.normal(f"batch {teacher.shape[1]} context"),
        "student_mask": torch.ones_like(image), "teacher_mask": torch.ones_like(teacher), "student_image": image,
        "teacher_image": teacher, "student_grid": grid, "teacher_grid": (2, 2),
        "interpolation": s.choice("bilinear", "nearest"),
    })  # fmt: skip


def check_vocabularies(s):
    words = {"a": 0, "b": 1}
    return Call(distill.check_vocabularies, {"student": words, "teacher": dict(words)})


def ContrastiveLoss(s):
    positive = s.normal("token token") > 0
    return Call(
        distill.ContrastiveLoss, {},
        {"similarity": s.normal("token token"), "positive": s.choice(None, positive)},
    )  # fmt: skip


def SimilarityDistill(s):
    return Call(
        distill.SimilarityDistill, {"temperature": 2.0},
        {"student": s.normal("token frame"), "teacher": s.normal("token frame")},
    )  # fmt: skip


def gather_batch(s):
    return Call(distill.gather_batch, {"x": s.normal("batch length dim"), "process_group": None})


def linear_cka(s):
    return Call(distill.linear_cka, {"x": s.normal("batch length dim"), "y": s.normal("batch length context")})


def cka_matrix(s):
    return Call(distill.cka_matrix, {"student": _layers(s), "teacher": _layers(s, 3)})


def dry_run(s):
    return Call(distill.dry_run, {
        "student": _layers(s), "teacher": {"a": s.normal("batch length context")}, "teacher_layers": "last",
        "align": distill.align_tokens, "student_grids": None,
    })  # fmt: skip


def sample_tokens(s):
    return Call(distill.sample_tokens, {
        "length": s["length"] + 3, "kept": s["length"], "generator": torch.Generator(), "device": "cpu",
    })  # fmt: skip


def _tapped(**arguments):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with distill.tap(**{"model": model, **arguments}) as features:
        model(torch.ones(2, 3))
    return features.layers


def tap(s):
    return Call(_tapped, {"patterns": s.choice("*", ["0"]), "point": "output", "frozen": False, "select": None})


def FrozenTeacher(s):
    return Call(distill.FrozenTeacher, {"model": nn.Linear(s["dim"], 3), "method": "forward"}, {
        "input": s.normal("batch dim"),
    })  # fmt: skip


def top_logits(s):
    return Call(distill.top_logits, {
        "hidden": s.normal("batch token dim"), "head": s.normal("7 dim"), "count": s["classes"], "temperature": 2.0,
        "chunk": s["chunk"],
    })  # fmt: skip


def SparseLogitsDistill(s):
    teacher = distill.top_logits(s.normal("batch token dim"), s.normal("7 dim"), s["classes"])
    return Call(distill.SparseLogitsDistill, {
        "temperature": 2.0, "tail": s.choice("bucket", "renormalise"), "chunk": s["chunk"],
    }, {"student": s.normal("batch token width"), "head": s.normal("7 width"), "teacher": teacher})  # fmt: skip


def TokenRelationDistill(s):
    layers = [s.normal("batch length dim"), s.normal("batch length width")]
    return Call(distill.TokenRelationDistill, {"resize": None, "chunk": s["chunk"], "process_group": None}, {
        "student": layers, "teacher": s.normal("batch length context"), "mask": s.choice(None, s.mask("batch length")),
        "orders": None, "grids": None,
    })  # fmt: skip


def fingerprint(s):
    return Call(distill.fingerprint, {"teacher": nn.Linear(s["dim"], s["width"])})
