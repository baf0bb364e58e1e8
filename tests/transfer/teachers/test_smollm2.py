"""A real teacher: the translated tensors of SmolLM2-135M give its logits, and our own model its text."""

import pytest
import torch

from tests import real_llm
from tests.transfer.teachers.canonical import Canonical, error
from transmamba.models import from_transformer
from transmamba.transfer.teachers import translate


@pytest.fixture(scope="module")
def smollm2():
    return real_llm.smollm2()


@pytest.mark.slow
def test_the_logits_of_smollm2(smollm2):
    tokenizer, teacher = smollm2
    ids = real_llm.text(tokenizer, 64)
    translated = translate(teacher)
    assert (translated.family, translated.architecture.unknown, translated.differs) == ("llama", (), ())
    with torch.no_grad():
        got, wanted = Canonical(translated).logits(ids), teacher(ids).logits
    assert ids.shape == (1, 64)
    # logits up to 26: transformers rounds the angles of position 63 to float32, the plain Transformer does not
    assert error(got, wanted) < 1e-5
    assert (got - wanted).abs().mean() < 2e-5
    assert torch.equal(got.argmax(-1), wanted.argmax(-1))


@pytest.mark.slow
def test_the_text_of_smollm2(smollm2):
    """Our model continues a text greedily: every token is the one that the teacher holds most likely at its place."""
    tokenizer, teacher = smollm2
    ids = real_llm.text(tokenizer, 16)
    model = from_transformer(teacher)
    with torch.no_grad():
        text = model.generate(ids, 64)
        likely = teacher(text).logits.argmax(-1)
    assert text.shape == (1, 80)
    assert torch.equal(text[:, 16:], likely[:, 15:-1])
