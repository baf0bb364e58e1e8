"""Examples of `transmamba.models`."""

import torch

from tests.hardening.examples.sizes import Call
from transmamba import models
from transmamba import nn as tnn


def _image(s, side=8):
    return {"x": s.normal(f"batch 3 {side} {side}"), }  # fmt: skip


def _backbone(s, **options):
    return {"img_size": 8, "patch_size": 4, "in_chans": 3, "num_classes": s["classes"], "dim": s["dim"], **options}


def VisionMamba(s):
    options = {"depth": 2, "orders": ("forward", "backward"), "mlp": s.choice(True, False), "d_state": s["state"]}
    return Call(models.VisionMamba, _backbone(s, **options), _image(s))


def Vim(s):
    options = {"depth": 2, "stride": s.choice(None, 2), "d_state": s["state"], "drop_path": 0.1,
               "float32_residual": True}  # fmt: skip
    return Call(models.Vim, _backbone(s, **options), _image(s))


def ViT(s):
    return Call(models.ViT, _backbone(s, depth=2, heads=s["dim"], distilled=s.choice(True, False)), _image(s))


def PlainMamba(s):
    options = {"depth": 2, "d_state": s["state"], "refinements": 1, "convolved": (0,), "drop_path": 0.1,
               "released_scan": False}  # fmt: skip
    return Call(models.PlainMamba, _backbone(s, **options), {"x": s.normal("2 3 8 12")})


def VideoMamba(s):
    options = {"num_frames": 2, "tubelet": 1, "depth": 2, "drop_path": 0.1, "float32_residual": True}
    return Call(models.VideoMamba, _backbone(s, **options), {"x": s.normal("batch 3 2 8 8")})


def VideoTextMamba(s):
    encoder = models.VideoMamba(8, 4, num_frames=2, dim=s["dim"], depth=2, num_classes=0)
    return Call(
        models.VideoTextMamba,
        {"encoder": encoder, "teacher_dim": s["context"]},
        {"x": s.normal("batch 3 2 8 8"), "visible": None, "per_frame": s.choice(True, False)},
    )


def _pyramid(s, function):
    arguments = {"dims": (2 * s["dim"], 2 * s["hidden"]), "depths": (1, 1), "d_state": s["state"],
                 "num_classes": s["classes"], "drop_path": 0.1}  # fmt: skip
    return Call(function, arguments, {"x": s.normal("batch 3 32 36")})


def vmamba_v0(s):
    return _pyramid(s, models.vmamba_v0)


def vmamba_v2(s):
    return _pyramid(s, models.vmamba_v2)


def MambaLM(s):
    return Call(
        models.MambaLM,
        {"vocab_size": 8 * s["classes"], "dim": s["dim"], "depth": 2, "mixer": tnn.MambaMixer,
         "d_intermediate": s.choice(0, 3), "tied": s.choice(True, False), "vocab_multiple": 8, "norm_eps": 1e-5},
        {"ids": s.whole("batch length", 8), "mask": s.choice(None, s.mask("batch length")),
         "seq_idx": s.choice(None, s.whole("batch length", 2))},
    )  # fmt: skip


def MambaEncoder(s):
    return Call(
        models.MambaEncoder,
        {"vocab_size": 8, "dim": s["dim"], "depth": 2, "max_length": 5, "types": 2, "mlp_ratio": 2.0,
         "d_state": s["state"]},
        {"ids": s.whole("batch length", 8), "mask": s.choice(None, s.mask("batch length")),
         "type_ids": s.whole("batch length", 2)},
    )  # fmt: skip


def next_token(s):
    return Call(models.next_token, {
        "logits": s.normal("batch classes"), "temperature": s.choice(0.0, 1.0), "top_k": s.choice(None, 1, 9),
        "top_p": s.choice(None, 0.5), "generator": torch.Generator(),
    })  # fmt: skip


def select_layers(s):
    return Call(models.select_layers, {"layers": [s.normal("batch dim")] * 3, "indices": s.choice(None, 2, [0, -1])})


def recompute_blocks(s):
    model = models.Vim(8, 4, dim=s["dim"], depth=1)
    return Call(models.recompute_blocks, {"model": model, "enabled": True})
