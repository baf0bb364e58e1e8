"""Backbones under torch.compile and torch.export, and in onnxruntime."""

import copy

import pytest
import torch

from tests.contracts.backbones import BACKBONES, CLASSES, build
from transmamba.models import Vim, vmamba_v2
from transmamba.ops import use_backend

every_backbone = pytest.mark.parametrize("name", BACKBONES)


@every_backbone
def test_compiles_in_one_graph_with_its_backward(name):
    model, x = build(name)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), model(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for got, wanted in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


@every_backbone
def test_exports_for_batches_of_any_size(name):
    model, x = build(name)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    for batch in (x, torch.cat([x, x, x[:1]]), x[:1]):
        torch.testing.assert_close(program.module()(batch), model(batch))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["vim", "vmamba"])
def test_runs_in_onnxruntime(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    # the reference is unrolled step by step, so the sequences have to be short
    model, x = {
        "vim": (Vim(8, 4, dim=12, depth=1, num_classes=CLASSES), torch.randn(2, 3, 8, 8)),
        "vmamba": (vmamba_v2((8, 12), (1, 1), num_classes=CLASSES), torch.randn(2, 3, 12, 8)),
    }[name]
    with use_backend("reference"), torch.no_grad():
        torch.onnx.export(model.eval(), (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x), atol=1e-4, rtol=1e-4)
