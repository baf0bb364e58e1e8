"""Models under torch.export and in onnxruntime, for batches and texts of any size; those that cannot raise an error."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.export import Dim

from tests.contracts.backbones import BACKBONES, SCANNING, SHORT_AND_WHOLE, build, short
from transmamba.models import MambaLM, Vim
from transmamba.nn import CrossMamba, Mamba2Mixer, Mamba3Mixer, MambaMixer
from transmamba.ops import selective_scan, ssd_scan, use_backend

BATCH = ({0: Dim("batch")},)
TEXT = {0: Dim("batch"), 1: Dim("length")}
MIXERS = {
    "mamba": MambaMixer,
    "mamba2": partial(Mamba2Mixer, head_dim=4),
    "mamba3": partial(Mamba3Mixer, d_state=4, head_dim=4),
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("made", SHORT_AND_WHOLE)
def test_exports_for_batches_of_any_size(name, made):
    model, x = made(name)
    program = torch.export.export(model, (x,), dynamic_shapes=BATCH)
    for batch in (x, torch.cat([x, x, x[:1]]), x[:1], x[:0]):
        torch.testing.assert_close(program.module()(batch), model(batch))


def test_an_exported_model_can_be_trained():
    model, x = build("vim")
    program = torch.export.export(model, (x,), dynamic_shapes=BATCH).module()
    x = torch.cat([x, x[:1]])
    program(x).square().sum().backward()
    model(x).square().sum().backward()
    exported = dict(program.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(exported[name].grad, p.grad)


def test_exports_a_text_of_any_length():
    """Also one of several chunks of the scan, where the example had one."""
    model = MambaLM(11, 12, depth=1).eval()
    ids = torch.randint(11, (2, 7))
    program = torch.export.export(model, (ids,), dynamic_shapes=(TEXT,)).module()
    for longer in (ids[:1].repeat(1, 20), ids):
        torch.testing.assert_close(program(longer), model(longer))
    program(ids.repeat(1, 10)).square().sum().backward()
    model(ids.repeat(1, 10)).square().sum().backward()
    torch.testing.assert_close(program.get_parameter("embedding.weight").grad, model.embedding.weight.grad)


@pytest.fixture
def in_onnxruntime(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    def export(model, inputs, dynamic):
        torch.onnx.export(model, inputs, tmp_path / "model.onnx", dynamo=True, verbose=False, dynamic_shapes=dynamic)
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        size = (tmp_path / "model.onnx").stat().st_size

        def run(*inputs):
            (got,) = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
            return torch.from_numpy(got)

        return run, size

    return export


quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@quiet
@pytest.mark.parametrize("name", ["vision_mamba", "vim", "plain_mamba", "vmamba_v2", "vit"])
@pytest.mark.parametrize("made", SHORT_AND_WHOLE)
def test_onnx_takes_batches_of_any_size(name, made, in_onnxruntime):
    """mamba 200; pytorch 130150; MambaVision 110."""
    model, x = made(name)
    run, _ = in_onnxruntime(model, (x,), BATCH)
    for batch in (x, torch.cat([x, x, x[:1]]), x[:1]):
        torch.testing.assert_close(run(batch), model(batch), atol=1e-4, rtol=1e-4)


@quiet
@pytest.mark.parametrize("name", ["vision_mamba", "vim", "plain_mamba", "vit"])
def test_a_model_compiles_in_one_graph_after_its_export(name, in_onnxruntime):
    """Dynamo evaluates less of Python by itself once a model has been exported: `min(..., default=...)`, for one."""
    model, x = short(name)
    in_onnxruntime(model, (x,), BATCH)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@quiet
@pytest.mark.parametrize("mixer", MIXERS)
# a graph that was traced for 5 tokens and is right for 210 holds no loop that was written out
@pytest.mark.parametrize("lengths", [(5,), pytest.param((70, 5), marks=pytest.mark.slow)], ids=["one", "two"])
def test_onnx_takes_texts_of_any_length_in_a_file_of_one_size(mixer, lengths, in_onnxruntime):
    model = MambaLM(11, 12, depth=1, mixer=MIXERS[mixer]).eval()
    ids, sizes = torch.randint(11, (2, 70)), []
    for length in lengths:
        run, size = in_onnxruntime(model, (ids[:, :length],), (TEXT,))
        sizes.append(size)
        for other in (ids[:1].repeat(1, 3), ids[:, :7].repeat(2, 1)):
            torch.testing.assert_close(run(other), model(other), atol=1e-4, rtol=1e-4)
    assert max(sizes) < 1.2 * min(sizes)  # the recurrence is one node, not one per token


@quiet
def test_onnx_has_the_cross_scan(in_onnxruntime):
    module = CrossMamba(6, 5, bidirectional=True).eval()
    query, context = torch.randn(2, 3, 6), torch.randn(2, 4, 5)
    run, _ = in_onnxruntime(module, (query, context), None)
    torch.testing.assert_close(run(query, context), module(query, context), atol=1e-4, rtol=1e-4)


def test_states_between_chunks_follow_for_an_open_number_of_them():
    """A length that a compiler keeps open takes all chunks at once: value and gradients of the loop."""
    x, dt, B = torch.randn(2, 20, 4, 3), torch.rand(2, 20, 4), torch.randn(2, 20, 2, 5)
    texts = torch.arange(20).div(7, rounding_mode="floor").expand(2, -1)

    def scan(x, dt, B, A, state):
        return ssd_scan(x, dt, A, B, B, chunk_size=4, seq_idx=texts[:, : x.shape[1]], initial_state=state,
                        return_last_state=True)  # fmt: skip

    A, state = -torch.rand(4), torch.randn(2, 4, 3, 5)
    torch._dynamo.reset()
    compiled = torch.compile(scan, backend="eager", fullgraph=True)
    for length in (20, 13):
        inputs = [t[:, :length].clone().requires_grad_() for t in (x, dt, B)] + [A.clone().requires_grad_(), state]
        for sequence in inputs[:3]:
            torch._dynamo.mark_dynamic(sequence, 1)  # it alone: every open size makes the guards harder to solve
        for got, expected in zip(compiled(*inputs), scan(*inputs), strict=True):
            torch.testing.assert_close(got, expected)
            grads = [torch.autograd.grad(y.square().sum(), inputs[:4], retain_graph=True) for y in (got, expected)]
            torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


# torch scripts some of its own formulas
deprecated = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@deprecated
@pytest.mark.parametrize("name", SCANNING)
def test_forward_mode_is_the_slope_along_a_direction(name):
    model, x = build(name)
    model, x = model.double(), x.double()
    along, step = torch.randn_like(x), 1e-5
    with torch.no_grad():
        slope = (model(x + step * along) - model(x - step * along)) / (2 * step)
    _, tangent = torch.func.jvp(model, (x,), (along,))
    torch.testing.assert_close(tangent, slope, atol=1e-4, rtol=1e-4)
    with forward_ad.dual_level():
        dual = model(forward_ad.make_dual(x, along))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, tangent)


@deprecated
def test_a_named_backend_says_why_it_has_no_forward_mode():
    u, B = torch.rand(1, 2, 5), torch.rand(1, 3, 5)
    with forward_ad.dual_level(), use_backend("chunked"):
        dual = forward_ad.make_dual(u, u)
        with pytest.raises(NotImplementedError, match="forward-mode differentiation needs plain torch operations"):
            selective_scan(dual, u, -torch.ones(2, 3), B, B)


@deprecated
def test_torch_jit_is_refused_with_what_replaces_it():
    """VMamba 65."""
    model, x = Vim(8, 4, dim=12, depth=1), torch.randn(1, 3, 8, 8)
    instead = r"use torch\.export\.export, torch\.onnx\.export\(\.\.\., dynamo=True\) or torch\.compile"
    with pytest.raises(NotImplementedError, match=f"Vim is not made for torch.jit.script: {instead}"):
        torch.jit.script(model)
    with pytest.raises(NotImplementedError, match=f"selective_scan is not made for torch.jit.script: {instead}"):
        torch.jit.script(selective_scan)
    with pytest.raises(NotImplementedError, match=f"Vim.forward is not made for torch.jit.trace: {instead}"):
        torch.jit.trace(model, x)
