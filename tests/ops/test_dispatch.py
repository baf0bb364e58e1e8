import pytest
import torch

from transmamba.ops import selective_scan, use_backend
from transmamba.ops.conv.inputs import ConvInputs
from transmamba.ops.dispatch import TABLE, Backend, explain, select_backend
from transmamba.ops.scan.inputs import ScanInputs


@pytest.fixture
def problem():
    x = torch.zeros(1, 1, 3, 2)
    return ScanInputs(x, x, torch.zeros(1, 5, 2), torch.zeros(1, 1, 3, 5), torch.zeros(1, 1, 3, 5))


@pytest.fixture
def picky(monkeypatch):
    """Put a backend in front of the table that refuses everything for two reasons."""
    entry = Backend("picky", TABLE["scan"][-1].run, lambda problem: ["it is Monday", "u is too small"])
    monkeypatch.setitem(TABLE, "scan", (entry, *TABLE["scan"]))


def test_the_reference_comes_last_and_never_refuses(problem):
    assert TABLE["scan"][-1].name == "reference"
    assert TABLE["scan"][-1].unsupported_reasons(problem) == []


def test_auto_takes_the_first_that_accepts(picky, problem):
    assert select_backend("scan", problem, "auto").name == next(
        b.name for b in TABLE["scan"] if not b.unsupported_reasons(problem)
    )


def test_a_named_backend_refuses_with_reasons_and_says_who_accepts(picky, problem):
    expected = (
        r"scan backend 'picky' refuses u \(1, 1, 3, 2\) float32 on cpu:\n  it is Monday\n  u is too small\n"
        r"accepting here: .*chunked, reference"
    )
    with pytest.raises(NotImplementedError, match=expected):
        select_backend("scan", problem, "picky")


def test_unknown_backend_lists_the_known_ones(problem):
    with pytest.raises(ValueError, match="unknown scan backend 'fast': expected auto, .*chunked, reference"):
        select_backend("scan", problem, "fast")


def test_use_backend_decides_what_auto_means_within_its_block(problem):
    before = select_backend("scan", problem, "auto").name
    with use_backend("reference"):
        assert select_backend("scan", problem, "auto").name == "reference"
        with use_backend("auto"):
            assert select_backend("scan", problem, "auto").name == before
        assert select_backend("scan", problem, "chunked").name == "chunked"
    assert select_backend("scan", problem, "auto").name == before


def test_use_backend_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="unknown scan backend 'fast'"), use_backend("fast"):
        pass


def test_a_preference_binds_scans_and_convolutions_only_where_they_have_it(picky, problem):
    tokens = ConvInputs(torch.zeros(1, 3, 2), torch.zeros(1, 2, 4))
    free = select_backend("convolution", tokens, "auto").name
    with use_backend("picky"):
        with pytest.raises(NotImplementedError, match="scan backend 'picky' refuses"):
            select_backend("scan", problem, "auto")
        assert select_backend("convolution", tokens, "auto").name == free
        with pytest.raises(ValueError, match="unknown convolution backend 'picky'"):
            select_backend("convolution", tokens, "picky")
    with use_backend("reference"):
        assert select_backend("convolution", tokens, "auto").name == "reference"


def test_use_backend_reaches_the_public_scan(monkeypatch):
    asked = []
    reference = TABLE["scan"][-1]
    entry = Backend("spy", lambda problem: (asked.append(1), reference.run(problem))[1], lambda problem: [])
    monkeypatch.setitem(TABLE, "scan", (*TABLE["scan"], entry))
    u, B = torch.ones(1, 2, 3), torch.ones(1, 5, 3)
    with use_backend("spy"):
        selective_scan(u, u, -torch.ones(2, 5), B, B)
    assert asked


@pytest.mark.parametrize(
    ("activations", "decay", "handed"),
    [
        (torch.bfloat16, torch.float32, (torch.bfloat16, torch.float32)),
        (torch.float32, torch.float32, (torch.float32, torch.float32)),
        (torch.float32, torch.float64, (torch.float64, torch.float64)),
    ],
)
def test_backends_get_halves_as_they_are_and_double_precision_throughout(monkeypatch, activations, decay, handed):
    seen = []
    reference = TABLE["scan"][-1]
    entry = Backend("spy", lambda p: (seen.append((p.u.dtype, p.A.dtype)), reference.run(p))[1], lambda problem: [])
    monkeypatch.setitem(TABLE, "scan", (*TABLE["scan"], entry))
    u, B = torch.ones(1, 2, 3, dtype=activations), torch.ones(1, 5, 3, dtype=activations)
    selective_scan(u, u, -torch.ones(2, 5, dtype=decay), B, B, backend="spy")
    assert seen == [handed]


def test_explain_says_why_down_to_the_one_that_runs(picky, problem):
    lines = explain("scan", problem).splitlines()
    assert lines[0] == "picky: it is Monday; u is too small"
    assert lines[1] == "cuda: needs a CUDA tensor, u is on cpu"
    assert lines[2] == "nvrtc: needs a CUDA tensor, u is on cpu"
    assert lines[-1] == f"{select_backend('scan', problem, 'auto').name}: runs it"
