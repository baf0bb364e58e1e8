"""Student layers are held to their teacher's shape."""

import pytest
import torch

from transmamba.distill.checks import check_layers

NARROW, WIDE = torch.ones(2, 3, 4), torch.ones(2, 3, 5)


def test_each_layer_is_held_to_its_own_teacher_layer():
    check_layers([NARROW, WIDE], [NARROW, WIDE])
    check_layers([NARROW, NARROW], [NARROW])
    message = r"student layer 1 has 4 channels, teacher 5: calibrate first, FeatureCalibrator\(4, 5\)"
    with pytest.raises(ValueError, match=message):
        check_layers([NARROW, NARROW], [NARROW, WIDE])
    with pytest.raises(ValueError, match="student layer 1 has 5 channels, teacher 4"):
        check_layers([NARROW, WIDE], [NARROW])
