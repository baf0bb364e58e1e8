"""The kernels compiled for an H100 or H200 on a machine that may have none: they lower, and registers suffice."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from transmamba.ops.conv import triton as conv_triton
from transmamba.ops.cross import triton as cross_triton
from transmamba.ops.cross.inputs import CrossInputs
from transmamba.ops.scan import triton
from transmamba.ops.scan.inputs import ScanInputs
from transmamba.ops.scan.triton import tiles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="package triton is not installed"),
]
SIZES = {
    "vim": (2, 197, 384, 16, 2),
    "lm": (1, 2048, 1536, 16, 1),
    "plain": (2, 196, 384, 16, 4),
    "vmamba": (2, 3136, 192, 1, 4),
}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.uint8: "*u8"}


def problem(name: str) -> ScanInputs:
    batch, length, channels, states, directions = SIZES[name]
    own = 1 if name == "plain" else directions
    half = lambda *shape: torch.empty(shape, dtype=torch.bfloat16)  # noqa: E731
    return ScanInputs(
        half(batch, 1, length, channels),
        half(batch, own, length, channels),
        torch.empty(own, states, channels),
        half(batch, directions, length, states),
        half(batch, directions, length, states),
        torch.empty(own, channels),
        torch.empty(own, channels),
        orders=torch.zeros(directions, length, dtype=torch.int64),
        softplus=True,
        parameters_by_step=name == "plain",
        merge=True,
    )


def launches(monkeypatch: pytest.MonkeyPatch, module, run: Callable[[], object]) -> list[tuple]:
    """List the kernels that `run` would launch, with their arguments and warps."""
    seen: list[tuple] = []
    capture = lambda kernel, grid, device, arguments, warps=1: seen.append((kernel, arguments, warps))  # noqa: E731
    monkeypatch.setattr(module, "launch", capture)
    run()
    return seen


def stack_bytes(kernel, arguments: dict, warps: int, folder: Path) -> int:
    """Compile the kernel for compute capability 9.0, specialised as a launch would; return bytes of local memory."""
    import triton as compiler
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants, attributes = {}, {}

    def describe(value, path: tuple[int, ...]):
        if isinstance(value, tuple):
            return tuple(describe(x, (*path, i)) for i, x in enumerate(value))
        if value is None or isinstance(value, bool) or value == 1 or kernel.params[path[0]].is_constexpr:
            constants[path] = value
            return "constexpr"
        if value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "i32"

    signature = {}
    for index, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            attributes[(index,)] = [["tt.divisibility", 16]]
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = describe(value, (index,))
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    compiled = compiler.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(compiler.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", binary], capture_output=True, text=True, check=True).stdout
    return int(usage.split("STACK:")[1].split()[0]) + int(usage.split("LOCAL:")[1].split()[0])


@pytest.mark.parametrize("programs", [1, 1056], ids=["one span", "many spans"])
@pytest.mark.parametrize("name", SIZES)
def test_scan_kernels_stay_in_registers(monkeypatch, tmp_path, name, programs):
    monkeypatch.setattr(tiles, "programs", lambda device: programs)
    p = problem(name)

    def run() -> None:
        y, _, saved = triton.forward(p, True)
        triton.backward(p, saved, y, None)

    found = launches(monkeypatch, triton, run)
    names = [launch[0].__name__ for launch in found]
    assert ("summarise_spans" in names) == (programs > 1)
    # launches of the backward differ only in whether they add to the one before
    for launch in found[:3] if programs == 1 else found:
        # a few registers may lie in memory: half the tile needs none there, but nearly as many instructions
        assert stack_bytes(*launch, tmp_path) <= 32, launch[0].__name__


def test_cross_scan_kernels_stay_in_registers(monkeypatch, tmp_path):
    p, reads = problem("vim"), torch.zeros(2, 50, dtype=torch.int64)
    cross = CrossInputs(p.u, p.dt, p.A, p.B, p.C[:, :, :50], p.dt_bias, p.orders, reads, softplus=True)

    def run() -> None:
        y, last, saved = cross_triton.forward(cross, True)
        cross_triton.backward(cross, saved, y, last)

    found = launches(monkeypatch, cross_triton, run)
    assert len(found) == 2
    for launch in found:
        assert stack_bytes(*launch, tmp_path) <= 32, launch[0].__name__


@pytest.mark.parametrize("time_innermost", [False, True])
def test_convolution_kernels_need_no_local_memory(monkeypatch, tmp_path, time_innermost):
    x = torch.empty(2, 384, 196, dtype=torch.bfloat16).transpose(1, 2)
    x = x if time_innermost else x.contiguous()
    arguments = (x, torch.empty(384, 4), torch.empty(384), True, False)

    def run() -> None:
        conv_triton.conv_backward(*arguments, conv_triton.conv_forward(*arguments))

    for launch in launches(monkeypatch, conv_triton, run):
        assert stack_bytes(*launch, tmp_path) == 0, launch[0].__name__
