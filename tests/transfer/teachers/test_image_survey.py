"""Every type of image model in transformers is translated by a family, or refused with the reason."""

import pytest

from tests.transfer.teachers.versions import complete
from transmamba.transfer.teachers import families, refused, translate
from transmamba.transfer.teachers.images_refused import REFUSED

transformers = pytest.importorskip("transformers")
TASKS = ("IMAGE", "VISION", "VIDEO", "OBJECT", "DEPTH", "SEGMENT", "BACKBONE", "MASK_GEN", "KEYPOINT", "VISUAL")


def image_types():
    auto = transformers.models.auto.modeling_auto
    names = [name for name in vars(auto) if name.endswith("_MAPPING_NAMES") and any(task in name for task in TASKS)]
    return sorted({kind for name in names for kind in getattr(auto, name)})


def covered():
    return {kind for family in families().values() for kind in family.model_types}


@complete
def test_refused_types_are_types_of_transformers_that_no_family_covers():
    assert set(REFUSED) <= set(transformers.CONFIG_MAPPING)
    assert not covered() & set(REFUSED)


@complete
def test_every_type_of_image_model_is_covered_has_a_covered_part_or_is_refused():
    left = []
    for kind in set(image_types()) - covered() - set(refused()):
        parts = transformers.CONFIG_MAPPING[kind]().to_dict().values()
        types = {part.get("model_type") for part in parts if isinstance(part, dict)}
        if not types & (covered() | set(refused())):
            left.append(kind)
    assert not left


@pytest.mark.parametrize(
    "name, message",
    [
        ("Swin", "a teacher of type 'swin' is refused: tokens attend within windows, in stages of several widths"),
        ("ConvNext", "a teacher of type 'convnext' is refused: it is a convolutional network"),
        ("Yolos", "a teacher of type 'yolos' is refused: detection tokens stand behind the patches"),
        ("VideoMAE", "a teacher of type 'videomae' is refused: patches span several frames"),
    ],
)
def test_a_refused_teacher_says_what_stands_in_the_way(name, message):
    config = getattr(transformers, f"{name}Config")()
    with pytest.raises(ValueError, match=message):
        translate({}, config=config)


def test_a_model_of_refused_parts_says_which():
    with pytest.raises(ValueError, match="'qwen2_vl' is refused: its part 'qwen2_vl_"):
        translate({}, config=transformers.Qwen2VLConfig())
