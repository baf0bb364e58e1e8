"""Image teachers for other image sizes: the tokens that the teacher itself gives there, or a refusal."""

import inspect
import re
from functools import partial

import pytest
import torch

from tests.transfer.teachers import test_beit, test_clip_vision, test_dino, test_image_towers, test_timm, test_vit
from tests.transfer.teachers.canonical import error, perturb
from transmamba.models import ViT, from_transformer, replace_mixers
from transmamba.nn import MambaMixer
from transmamba.nn.position import resize_position
from transmamba.transfer import fit_layers

transformers = pytest.importorskip("transformers")
# both larger, both smaller, one of each; of patches of four pixels, on three by three of which the teachers are built
SIZES = {"larger": (20, 16), "smaller": (8, 8), "longer": (24, 8)}
TEACHERS = {
    **{name: (test_vit, name) for name in ("ViT", "DeiT", "IJepa", "ViTMSN")},
    **{name: (test_clip_vision, name) for name in (*test_clip_vision.CLIPS, "Siglip")},
    **{name: (test_image_towers, name) for name in test_image_towers.TOWERS},
    **{name: (test_dino, name) for name in ("Dinov2", "Dinov2WithRegisters")},
    "DINOv3": (test_dino, "DINOv3ViT, registers"),
}


def build(module, name):
    return module.build(name.split(",")[0], **(module.MODELS[name] if module is test_dino else {}))


def tokens(teacher, x):
    """Return the tokens of a model of transformers, which resizes by itself or has to be asked."""
    parameters = inspect.signature(type(teacher).forward).parameters
    asked = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
    return teacher(x, **asked).last_hidden_state


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TEACHERS)
def test_the_tokens_are_those_of_the_teacher_at_that_size(name, size):
    module, kind = TEACHERS[name]
    teacher = build(module, kind)
    x = torch.randn(2, module.IMAGES.shape[1], *SIZES[size], generator=torch.Generator().manual_seed(3))
    ours = from_transformer(teacher, img_size=SIZES[size])
    assert ours.grid == tuple(side // 4 for side in SIZES[size])
    with torch.no_grad():
        assert error(ours.forward_features(x).last, tokens(teacher, x)) < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_siglip_2_resizes_with_triangles(size):
    sizes = {key: value for key, value in test_clip_vision.SIZES.items() if key != "image_size"}
    teacher = perturb(transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**sizes | {"num_patches": 9})))
    x = torch.randn(2, 2, *SIZES[size], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = from_transformer(teacher, img_size=SIZES[size]).forward_features(x).last
        assert error(ours, teacher(**test_clip_vision.patches(x)).last_hidden_state) < 1e-5


@pytest.mark.parametrize(
    ("teacher", "antialias"),
    [(lambda: test_timm.build("DINOv2, registers"), True), (lambda: ViT(12, 4, dim=12, depth=1, heads=3), False)],
    ids=["timm", "our own"],
)
def test_timm_averages_where_a_grid_shrinks(teacher, antialias):
    teacher = teacher()
    ours, table = from_transformer(teacher, img_size=8), teacher.pos_embed.detach()
    prefix = table.shape[1] - 9  # with registers, or a class token, that have rows of their own, or none
    wanted = resize_position(table[:, prefix:], (3, 3), (2, 2), antialias=antialias)
    assert torch.equal(ours.pos_embed, torch.cat([table[:, :prefix], wanted], 1))


def test_a_table_of_the_same_grid_is_copied_and_keeps_its_dtype():
    teacher = test_vit.build("ViT").to(torch.bfloat16)
    table = teacher.embeddings.position_embeddings
    same, other = (from_transformer(teacher, img_size=size).pos_embed for size in (12, 16))
    assert torch.equal(same, table) and same.data_ptr() != table.data_ptr()
    assert other.dtype == torch.bfloat16 and other.shape == (1, 17, 24)


def test_a_resized_teacher_is_saved_and_resized_again(tmp_path):
    first = from_transformer(test_dino.build("Dinov2"), img_size=(8, 16))
    first.save_pretrained(tmp_path)
    again = ViT.from_pretrained(tmp_path)
    assert again.grid == (2, 4) and torch.equal(again.pos_embed, first.pos_embed)
    assert from_transformer(again, img_size=20).grid == (5, 5)


def test_the_closed_form_follows_a_resized_teacher():
    teacher = from_transformer(test_dino.build("Dinov2"), img_size=(16, 24))
    student = replace_mixers(teacher, {1: partial(MambaMixer, bias=True)}, orders=("forward",))
    x = [torch.randn(4, 2, 16, 24) for _ in range(4)]
    report = fit_layers(teacher, student.eval(), x, layers=[1], progress=False)
    assert report.rows[0].tokens == 4 * 4 * 25 and report.rows[0].r2 > 0


def encoder():
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=9))


@pytest.mark.parametrize(
    ("teacher", "size", "message"),
    [
        (lambda: test_beit.build("Beit", **test_beit.EACH), 16, "learned bias for distances on 3 by 3 patches: leave"),
        (lambda: test_timm.build("BEiT, shared"), (12, 16), "learned bias for distances on 3 by 3 patches: leave"),
        (lambda: test_vit.build("ViT"), 14, "patches of 4 pixels every 4 do not tile an image of 14 x 14"),
        (lambda: test_vit.build("ViT"), (12, 3), "patches of 4 pixels every 4 do not tile an image of 12 x 3"),
        (encoder, 16, "img_size= is for image models, this teacher reads text"),
    ],
    ids=["BEiT", "timm's BEiT", "no multiple", "less than a patch", "text"],
)
def test_refusals(teacher, size, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_transformer(teacher(), img_size=size)
