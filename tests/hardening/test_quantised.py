"""Quantised models run, and name their limits in errors."""

import warnings

import pytest
import torch
from torch import nn

from transmamba.models import MambaLM, to_official


@pytest.fixture
def quantised():
    quantization = pytest.importorskip("torch.ao.quantization")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces another place for it
        return quantization.quantize_dynamic(MambaLM(16, 16, depth=1).eval(), {nn.Linear}, dtype=torch.qint8)


def test_a_quantised_model_runs(quantised):
    ids = torch.tensor([[1, 2, 3]])
    assert quantised(ids).isfinite().all() and quantised.generate(ids, 2).shape == (1, 5)


@pytest.mark.parametrize("write", [lambda model, _: to_official(model), MambaLM.save_pretrained])
def test_its_weights_are_not_there_to_be_written(quantised, write, tmp_path):
    with pytest.raises(
        TypeError, match=r"_packed_params.*is not a tensor but a .*: the layers of a quantised model have no"
    ):
        write(quantised, tmp_path)
