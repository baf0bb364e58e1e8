"""A real DINOv2 ViT-S/14: translated by its older names, against transformers and against onnxruntime."""

import pytest
import torch
import torch.nn.functional as F

from tests import real
from tests.transfer.teachers.canonical import Canonical
from transmamba.models import from_transformer
from transmamba.transfer.teachers import translate

TABLE = "embeddings.position_embeddings"


def resized(table, side):
    """Resize the position table for side x side patches as DINOv2 does: bicubic, without antialias."""
    square = table[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], square.flatten(2).transpose(1, 2)], 1)


@pytest.mark.slow
def test_a_real_dinov2_has_the_tokens_of_transformers_and_onnxruntime():
    transformers = pytest.importorskip("transformers")
    graph = real.dinov2_graph()
    state = real.dinov2_state(graph)
    translated = translate(state, config=real.DINOV2)
    assert (translated.family, translated.differs, translated.architecture.unknown) == ("dinov2", (), ())
    assert not set(translated.ignored) - {"embeddings.mask_token"}

    config = transformers.Dinov2Config(**{key: value for key, value in real.DINOV2.items() if key != "model_type"})
    teacher = transformers.Dinov2Model(config).eval()
    missing, unexpected = teacher.load_state_dict(names_of_today(state), strict=False)
    assert set(missing) <= {"embeddings.mask_token"} and not unexpected
    images = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = teacher(images).last_hidden_state
        assert distance(Canonical(translated).image(images), wanted) < 5e-5
        assert distance(from_transformer(translated).forward_features(images).last, wanted) < 5e-5

    # the file is for smaller images
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    small = translate(state | {TABLE: resized(state[TABLE], 16)}, config=real.DINOV2 | {"image_size": 224})
    with torch.no_grad():
        canonical, ours = Canonical(small).image(images), from_transformer(small).forward_features(images).last
        for wanted in (teacher(images).last_hidden_state, real.dinov2_tokens(graph, images)):
            assert distance(canonical, wanted) < 5e-5
            assert distance(ours, wanted) < 5e-5


def distance(got, wanted):
    return float((got - wanted).abs().max())


def names_of_today(state):
    """Return the names of transformers 5."""
    words = {"attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj"}
    words |= {"attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj"}
    renamed = {}
    for name, tensor in state.items():
        for old, new in words.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed
