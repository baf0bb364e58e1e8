"""torch.export with batch, tokens and context of any size, for every op and every kind of model."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.export import Dim

from transmamba import ops
from transmamba.models import (
    AudioEncoder,
    BackbonePatches,
    MambaEncoder,
    MambaFrames,
    MambaLM,
    PooledText,
    SequentialHead,
    TightHead,
    TransformerEncoder,
    VideoMamba,
    VideoRetriever,
    VideoTextMamba,
    Vim,
    VisionLanguageMamba,
    VisionMamba,
    vmamba_v2,
)
from transmamba.models.retrieval_heads import TransformerTemporal
from transmamba.models.splice import IMAGE_TOKEN_INDEX
from transmamba.nn import Attention, CrossMamba, CrossMambaBlock, Mamba2Mixer, Mamba3Mixer, MambaMixer

OPEN = {0: Dim.AUTO, 1: Dim.AUTO}  # batch and tokens
SIZES = ((3, 5), (4, 9), (2, 70))  # traced with the first; the last has several chunks of a scan
A = -torch.rand(1, 4, 3)


class Function(nn.Module):
    """A function in the form that torch.export takes."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, u, dt, B, C):
        return self.function(u, dt, B, C)


def both_ways(u):
    return ops.scan_orders(("forward", "backward"), u.shape[1], u.device)


def read_somewhere(u, dt, B, C):
    reads = torch.arange(C.shape[1]).clamp(max=u.shape[1] - 1).expand(u.shape[0], -1)
    return ops.cross_scan(u, dt[:, None], A, B[:, None], C[:, None], reads=reads, orders=both_ways(u))


def rotated(u, dt, B, C):
    u, dt, B = u[:, :, None], dt[..., :1], B[:, :, None]
    return ops.trapezoidal_scan(u, dt, -dt, B, B, 0.5 * dt, dt[..., None])[0]


OPS = {
    "selective_scan": lambda u, dt, B, C: ops.selective_scan(u.mT, dt.mT, A[0], B.mT, B.mT),
    "multi_scan": lambda u, dt, B, C: ops.multi_scan(u, dt[:, None], A, B[:, None], B[:, None], orders=both_ways(u)),
    "cross_scan": lambda u, dt, B, C: ops.cross_scan(u, dt[:, None], A, B[:, None], C[:, None], orders=both_ways(u)),
    "cross_scan with reads": read_somewhere,
    "causal_conv1d": lambda u, dt, B, C: ops.causal_conv1d(u, torch.ones(2, 4, 3), orders=both_ways(u)),
    "ssd_scan": lambda u, dt, B, C: ops.ssd_scan(
        u[:, :, None], dt[..., :1], -torch.ones(1), B[:, :, None], B[:, :, None]
    ),
    "trapezoidal_scan": rotated,
    "mixing_matrix": lambda u, dt, B, C: ops.mixing_matrix(dt[:, None], A, B[:, None], B[:, None]),
    "permute_tokens": lambda u, dt, B, C: ops.permute_tokens(u, both_ways(u)[1]),
}


def check(model, make, sizes=SIZES):
    program = torch.export.export(model, make(*sizes[0]), dynamic_shapes=(OPEN,) * len(make(*sizes[0]))).module()
    for size in sizes:
        inputs = make(*size)
        torch.testing.assert_close(program(*inputs), model(*inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OPS)
def test_every_op(name):
    def make(batch, length):
        return (*torch.rand(2, batch, length, 4), torch.rand(batch, length, 3), torch.rand(batch, length + 2, 3))

    check(Function(OPS[name]), make)


@pytest.mark.parametrize("readout", ["final", "aligned", "progress"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_cross_mamba_with_masks_on_both_sides(readout, bidirectional):
    """Neither the batch nor a length is tied to that of the example."""

    def make(batch, length):
        context = length if readout == "aligned" else 2 * length + 1
        masks = (torch.arange(size).expand(batch, -1) < size - 1 for size in (context, length))
        return torch.randn(batch, length, 6), torch.randn(batch, context, 4), *masks

    check(CrossMamba(6, 4, readout=readout, bidirectional=bidirectional).eval(), make)


def test_cross_mamba_block():
    check(CrossMambaBlock(6, 4).eval(), lambda batch, n: (torch.randn(batch, n, 6), torch.randn(batch, n + 3, 4)))


def test_images_and_sounds_of_any_size():
    def image(batch, side):
        return (torch.randn(batch, 3, 16 * side, 32 * side + 1),)

    open_sides = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    model, sizes = vmamba_v2((8, 12), (1, 1), num_classes=5).eval(), ((2, 2), (3, 3))
    program = torch.export.export(model, image(*sizes[0]), dynamic_shapes=open_sides).module()
    for size in sizes:
        (x,) = image(*size)
        torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=1e-4)

    listener = AudioEncoder(5, 12, depth=1, heads=3, max_length=60).eval()
    program = torch.export.export(listener, (torch.randn(2, 5, 24),), dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO},))
    x = torch.randn(3, 5, 40)
    torch.testing.assert_close(program.module()(x), listener(x), atol=1e-5, rtol=1e-4)


def test_a_model_of_one_grid_refuses_other_images_after_export_too():
    model, x = Vim((8, 12), 4, dim=12, depth=1, num_classes=5).eval(), torch.randn(2, 3, 8, 12)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch")},)).module()
    with pytest.raises((AssertionError, RuntimeError), match="Guard failed|expected"):
        program(torch.randn(2, 3, 12, 16))


TEXT = {
    "mamba": lambda: MambaLM(11, 12, depth=1),
    "mamba with positions": lambda: MambaLM(11, 12, depth=1, max_length=80),
    "mamba2": lambda: MambaLM(11, 12, depth=1, mixer=partial(Mamba2Mixer, head_dim=4)),
    "mamba3": lambda: MambaLM(11, 12, depth=1, mixer=partial(Mamba3Mixer, d_state=4, head_dim=4)),
    "hybrid": lambda: MambaLM(11, 12, depth=2, mixer=[MambaMixer, partial(Attention, heads=3, causal=True)]),
    "encoder": lambda: MambaEncoder(11, 12, depth=1, max_length=80),
    "transformer": lambda: TransformerEncoder(11, 12, depth=1, heads=3, max_length=80),
}


@pytest.mark.parametrize("name", TEXT)
def test_texts_with_a_mask(name):
    def make(batch, length):
        return torch.randint(11, (batch, length)), torch.arange(length).expand(batch, -1) < length - 1

    check(TEXT[name]().eval(), make)


LOOK = {"nothing": {}, "text": {"cross_after": [0], "query": "text"}, "image": {"cross_after": [0], "query": "image"}}


class Answering(nn.Module):
    """The logits of a model that reads images and text, the images in one tensor."""

    def __init__(self, options):
        super().__init__()
        vision = BackbonePatches(VisionMamba(8, 4, dim=12, depth=1), 12)
        self.model = VisionLanguageMamba(vision, MambaLM(11, 16, depth=2), **options)
        for p in self.model.parameters():
            nn.init.normal_(p, std=0.3)  # new CrossMamba blocks give zero

    def forward(self, ids, images, mask, labels):
        return self.model(ids, images, mask, labels).logits


def question(batch, length):
    """Draw texts with an image in another place of each, padded by one token but for the last."""
    ids = torch.randint(1, 11, (batch, length))
    ids[torch.arange(batch), torch.arange(batch) % 3] = IMAGE_TOKEN_INDEX
    mask = torch.arange(length).expand(batch, -1) < length - (torch.arange(batch) < batch - 1)[:, None]
    return ids, torch.randn(batch, 1, 3, 8, 8), mask, ids.masked_fill(torch.arange(length) < length - 3, -100)


@pytest.mark.parametrize("looks", LOOK)
def test_images_in_texts_of_any_length(looks):
    """The program also checks the placeholders, whose number is a value that the export does not have."""
    model, inputs = Answering(LOOK[looks]).eval(), question(3, 6)
    dynamic = (OPEN, {0: Dim.AUTO}, OPEN, OPEN)
    program = torch.export.export(model, inputs, dynamic_shapes=dynamic).module()
    for size in SIZES[1:]:
        inputs = question(*size)
        torch.testing.assert_close(program(*inputs), model(*inputs), atol=1e-5, rtol=1e-4)
    inputs[0][0, 0] = 1
    with pytest.raises(RuntimeError, match=f"a sample needs one placeholder \\({IMAGE_TOKEN_INDEX}\\) per image"):
        program(*inputs)


HEADS = {
    "mean": lambda: None,
    "sequential": lambda: SequentialHead(6, TransformerTemporal(6, depth=1, heads=2)),
    "tight": lambda: TightHead(6),
}


@pytest.mark.parametrize("head", HEADS)
def test_any_number_of_texts_and_videos(head):
    def make(texts, videos, length=5):
        masks = torch.arange(length).expand(texts, -1) < length - 1, torch.arange(3).expand(videos, -1) < 2
        return torch.randint(11, (texts, length)), torch.randn(videos, 3, 3, 8, 8), *masks

    text = PooledText(MambaEncoder(11, 8, depth=1), 8, 6)
    video = MambaFrames(VideoMamba(8, 4, num_frames=3, dim=12, depth=1, num_classes=0), 6)
    model = VideoRetriever(text, video, HEADS[head]()).eval()
    for p in model.head.parameters():
        nn.init.normal_(p, std=0.3)
    dynamic = (OPEN, {0: Dim.AUTO}, OPEN, {0: Dim.AUTO})
    program = torch.export.export(model, make(2, 4), dynamic_shapes=dynamic).module()
    for inputs in (make(7, 3, 9), make(3, 5, 70)):
        torch.testing.assert_close(program(*inputs), model(*inputs), atol=1e-5, rtol=1e-4)


def test_any_number_of_clips_beside_their_texts():
    """The features that VideoMamba's pretraining compares with texts."""
    encoder = VideoMamba(8, 4, num_frames=3, dim=12, depth=2, num_classes=0)
    model, clips = VideoTextMamba(encoder, 6).eval(), torch.randn(5, 3, 3, 8, 8)
    program = torch.export.export(model, (clips[:2],), dynamic_shapes=({0: Dim.AUTO}, None)).module()
    torch.testing.assert_close(program(clips), model(clips))
