"""Examples of `transmamba.models`."""

from functools import partial

import torch

from tests.hardening.examples.sizes import Call
from transmamba import models
from transmamba import nn as tnn


def _image(s, side=8):
    return {"x": s.normal(f"batch 3 {side} {side}"), }  # fmt: skip


def _backbone(s, **options):
    return {"img_size": 8, "patch_size": 4, "in_chans": 3, "num_classes": s["classes"], "dim": s["dim"], **options}


def VisionMamba(s):
    mixers = {"d_state": s["state"], "mixer": None}, {"d_state": None, "mixer": partial(tnn.MambaMixer, directions=2)}
    options = {"depth": 2, "orders": ("forward", "backward"), "mlp": s.choice(True, False), "mlp_ratio": 2.0}
    options |= s.choice(*mixers)
    return Call(models.VisionMamba, _backbone(s, **options), _image(s))


def create(s):
    options = {"depth": 2, "orders": ("forward", "backward"), "mlp": True, "d_state": s["state"]}
    return Call(models.create, {"name": "VisionMamba", **_backbone(s, **options)})


def list_models(s):
    return Call(models.list_models, {"pattern": s.choice("*", "vim_*", "none")})


def register(s):
    return Call(models.register, {"builder": s.choice(models.Vim, "name", tnn.MambaMixer)})


def Vim(s):
    options = {"depth": 2, "stride": s.choice(None, 2), "d_state": s["state"], "drop_path": 0.1,
               "float32_residual": True}  # fmt: skip
    return Call(models.Vim, _backbone(s, **options), _image(s))


def ViT(s):
    scans = {"mixer": [partial(tnn.MambaMixer, directions=2), partial(tnn.Attention, heads=1)],
             "orders": ("forward", "backward"), "prefix_scan": s.choice("ends", "middle", "last")}  # fmt: skip
    options = s.choice(scans, {"block": partial(tnn.TransformerBlock, hidden_dim=3, placement="post")})
    parts = {"registers": s.choice(0, 2), "position_table": True, "prefix_positions": s.choice(None, 1),
             "class_token": True, "patch_bias": True, "norm_pre": s.choice(True, False), "norm": "layer",
             "norm_eps": 1e-6, "norm_bias": True, "final_norm": s.choice(True, False), "fc_norm": s.choice(True, False),
             "pool": s.choice("token", "mean")}  # fmt: skip
    plain = _backbone(s, depth=2, heads=s["dim"], distilled=s.choice(True, False, "token"))
    return Call(models.ViT, {**plain, **parts, **options}, _image(s))


def TransformerEncoder(s):
    return Call(
        models.TransformerEncoder,
        {"vocab_size": 8, "dim": s["dim"], "depth": 2, "heads": 1, "max_length": 5, "types": s.choice(0, 2),
         "embedding_dim": s.choice(None, 3), "mixer": partial(tnn.Attention, heads=1),
         "block": partial(tnn.TransformerBlock, hidden_dim=3), "orders": None, "embed_norm": True, "final_norm": True,
         "norm": "layer", "norm_eps": 1e-6, "norm_bias": True, "pad_token": s.choice(None, 0)},
        {"ids": s.whole("batch length", 8), "mask": s.choice(None, s.mask("batch length")), "type_ids": None},
    )  # fmt: skip


def AudioEncoder(s):
    return Call(
        models.AudioEncoder,
        {"mels": s["chans"], "dim": s["dim"], "depth": 2, "heads": 1, "max_length": 5,
         "mixer": partial(tnn.Attention, heads=1), "block": partial(tnn.TransformerBlock, hidden_dim=3), "orders": None,
         "norm": "layer", "norm_eps": 1e-6, "norm_bias": True},
        {"x": s.normal("batch chans 8")},
    )  # fmt: skip


def from_transformer(s):
    teacher = models.ViT(8, 4, dim=6, depth=1, heads=s.choice(2, 3), num_classes=s["classes"])
    return Call(models.from_transformer, {"teacher": teacher, "family": None, "config": None}, _image(s))


def replace_mixers(s):
    model = models.MambaLM(s["vocabulary"], s["dim"], depth=2)
    return Call(models.replace_mixers, {"model": model, "mixers": {s.choice(0, 1): tnn.MambaMixer}})


def PlainMamba(s):
    options = {"depth": 2, "d_state": s["state"], "num_stem_convs": 1, "conv_layers": (0,), "drop_path": 0.1,
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
         "d_intermediate": s.choice(0, 3), "tied": s.choice(True, False), "vocab_multiple": 8, "norm_eps": 1e-5,
         "block": None, "norm": s.choice("rms", "layer"), "norm_bias": True, "max_length": s.choice(None, 5),
         "head_bias": s.choice(True, False), "logit_softcap": s.choice(None, 3.0)},
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


def _encoder(s, width):
    """Return a small Mamba that reads tokens."""
    return models.MambaEncoder(8, width, depth=1, max_length=5)


def ClipPatches(s):
    return Call(
        models.ClipPatches, {"encoder": _clip().vision_model, "layer": s.choice(-2, 1)},
        {"images": s.normal("batch 3 8 8")},
    )  # fmt: skip


def BackbonePatches(s):
    backbone = models.VisionMamba(8, 4, dim=s["dim"], depth=2)
    return Call(
        models.BackbonePatches, {"backbone": backbone, "dim": s["dim"], "layer": s.choice(None, 0, -1)},
        {"images": s.normal("batch 3 8 8")},
    )  # fmt: skip


def VisionLanguageMamba(s):
    vision = models.BackbonePatches(models.VisionMamba(8, 4, dim=6, depth=1), 6)
    ids = torch.cat([s.whole("batch length", 8), torch.full((s["batch"], 1), -200), s.whole("batch 2", 8)], 1)
    return Call(
        models.VisionLanguageMamba,
        {"vision": vision, "language": models.MambaLM(8, s["dim"], depth=2), "cross_after": [0],
         "query": s.choice("image", "text"), "cross": models.cross_block},
        {"ids": ids, "images": [s.normal("1 3 8 8")] * s["batch"], "mask": s.choice(None, torch.ones_like(ids) > 0),
         "labels": torch.where(torch.arange(ids.shape[1]) < ids.shape[1] - 2, -100, ids)},
    )  # fmt: skip


def cross_block(s):
    return Call(models.cross_block, {"dim": s["dim"]}, {
        "x": s.normal("batch length dim"), "context": s.normal("batch past dim"), "context_mask": None,
    })  # fmt: skip


def _compared(s):
    return {
        "text": s.normal("token dim"), "frames": s.normal("batch frame dim"),
        "frame_mask": s.choice(None, s.mask("batch frame")), "tokens": s.normal("token length dim"),
        "token_mask": s.choice(None, s.mask("token length")),
    }  # fmt: skip


def MeanPooling(s):
    return Call(models.MeanPooling, {}, _compared(s))


def SequentialHead(s):
    temporal = models.TemporalMamba(s["dim"], depth=1, d_state=s["state"])
    return Call(models.SequentialHead, {"dim": s["dim"], "temporal": temporal}, _compared(s))


def TightHead(s):
    options = {"dim": s["dim"], "d_state": s["state"], "bidirectional": s.choice(True, False)}
    return Call(models.TightHead, options, _compared(s))


def _frames(s):
    return {"frames": s.normal("batch frame dim"), "frame_mask": s.choice(None, s.mask("batch frame"))}


def TemporalTransformer(s):
    options = {"dim": s["dim"], "depth": 1, "heads": s["dim"], "max_frames": 5}
    return Call(models.TemporalTransformer, options, _frames(s))


def TemporalMamba(s):
    return Call(models.TemporalMamba, {"dim": s["dim"], "depth": 1, "d_state": s["state"]}, _frames(s))


def LogitScale(s):
    return Call(models.LogitScale, {"start": 2.0, "largest": 10.0}, {"similarity": s.normal("token batch")})


def _text(s):
    return {"ids": s.whole("token length", 8), "token_mask": s.choice(None, s.mask("token length"))}


def PooledText(s):
    return Call(models.PooledText, {"encoder": _encoder(s, 6), "width": 6, "dim": s["dim"]}, _text(s))


def _clips(s, frames=3):
    return {"clips": s.normal(f"batch 3 {frames} 8 8"), "frame_mask": s.choice(None, s.mask(f"batch {frames}"))}


def _frame_encoder():
    return models.VideoMamba(8, 4, num_frames=3, dim=12, depth=1, num_classes=0)


def MambaFrames(s):
    return Call(models.MambaFrames, {"encoder": _frame_encoder(), "dim": s["dim"]}, _clips(s))


def VideoRetriever(s):
    text = models.PooledText(_encoder(s, 6), 6, s["dim"])
    video = models.MambaFrames(_frame_encoder(), s["dim"])
    return Call(
        models.VideoRetriever, {"text": text, "video": video, "head": None, "scale": models.LogitScale()},
        {**_text(s), **_clips(s)},
    )  # fmt: skip


def _clip():
    """Return a CLIP of transformers with two layers of width 8."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 8, "max_position_embeddings": 8, "eos_token_id": 7, "bos_token_id": 0,
            "pad_token_id": 1}  # fmt: skip
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6))


def ClipText(s):
    return Call(models.ClipText, {"clip": _clip()}, _text(s))


def ClipFrames(s):
    return Call(models.ClipFrames, {"clip": _clip()}, _clips(s))


def clip4clip(s):
    head = s.choice(None, models.TightHead(6, d_state=2))
    return Call(models.clip4clip, {"clip": _clip(), "head": head}, {**_text(s), **_clips(s)})
