"""Our scans on a GPU (CUDA, Triton, torch in chunks) against mamba-ssm's kernel: forward and backward, bfloat16.

    MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm      (the peer, with its Mamba-1 kernel)
    python tests/benchmarks/bench_gpu.py [--shapes vim lm plain vmamba] [--batch 64] [--repeat 20]

One direction (vim, lm): mamba-ssm in its own layout (batch, dim, length). Four directions (plain, vmamba): u permuted,
mamba-ssm, y permuted back, per direction, and the sum. Contestants take turns; medians and quartiles of device time;
memory is the peak above the inputs. Two limits stand above each shape: every input, output and gradient moved once at
the bandwidth of a copy, and one exponential per element and pass at the rate of the special function units. The columns
say which share of each a contestant reaches. Without a GPU, `--device cpu --tiny` tries the script itself, with Triton
in its interpreter.
"""

import argparse
import importlib.metadata
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """Sizes, and whether dt, A and C are shared by the directions and follow the steps, as in PlainMamba."""

    batch: int
    length: int
    dim: int
    state: int
    directions: int
    by_step: bool = False


SHAPES = {
    "vim": Shape(64, 197, 384, 16, 1),
    "lm": Shape(1, 2048, 1536, 16, 1),
    "plain": Shape(64, 196, 384, 16, 4, by_step=True),
    "vmamba": Shape(64, 3136, 192, 1, 4),
}
Step = Callable[[], object]


def make_inputs(shape: Shape, device: str) -> dict[str, Tensor | None]:
    torch.manual_seed(0)
    batch, length, dim, state, directions, by_step = shape
    own = 1 if by_step else directions
    draw = lambda *sizes: torch.randn(*sizes, device=device)  # noqa: E731
    inputs = {
        "u": draw(batch, length, dim).bfloat16(),
        "dt": draw(batch, own, length, dim).bfloat16(),
        "A": -torch.arange(1.0, state + 1, device=device).expand(own, dim, state).clone(),
        "B": draw(batch, directions, length, state).bfloat16(),
        "C": draw(batch, own, length, state).bfloat16(),
        "D": draw(own, dim),
        "dt_bias": draw(own, dim) - 4,
    }
    return {name: x.requires_grad_() for name, x in inputs.items()}


def make_orders(shape: Shape, device: str) -> Tensor | None:
    """Return rows, columns and both reversed, of a grid as square as the length allows."""
    if shape.directions == 1:
        return None
    side = max(n for n in range(1, int(shape.length**0.5) + 1) if shape.length % n == 0)
    rows = torch.arange(shape.length, device=device)
    columns = rows.view(side, -1).T.flatten()
    return torch.stack([rows, columns, rows.flip(0), columns.flip(0)])


def own_step(shape: Shape, device: str, backend: str) -> Step:
    """Build a step of a backend of ours, channel-last."""
    from transmamba.ops import multi_scan

    inputs, orders = make_inputs(shape, device), make_orders(shape, device)
    options = {"softplus": True, "orders": orders, "merge": orders is not None, "parameters_by_step": shape.by_step}
    target = torch.ones(shape.batch, 1, shape.length, shape.dim, device=device, dtype=torch.bfloat16)

    def step() -> None:
        y = multi_scan(**inputs, **options, backend=backend)
        torch.autograd.grad(y, list(inputs.values()), target.view_as(y))

    return step


def drop_in_step(shape: Shape, device: str, scan: Callable[..., Tensor]) -> Step:
    """Build a step of a scan with mamba-ssm's signature, (batch, dim, length), permuted there and back if need be."""
    inputs, orders = make_inputs(shape, device), make_orders(shape, device)
    names = ("u", "dt", "B", "C")
    swapped = {name: inputs[name].detach().transpose(-1, -2).contiguous().requires_grad_() for name in names}
    A, D, bias = inputs["A"], inputs["D"], inputs["dt_bias"]
    inverse = None if orders is None else orders.argsort(-1)
    target = torch.ones_like(swapped["u"])

    def direction(k: int) -> Tensor:
        pick = lambda x: x[:, min(k, x.shape[1] - 1)]  # noqa: E731
        u = swapped["u"] if orders is None else swapped["u"][:, :, orders[k]]
        own = min(k, A.shape[0] - 1)
        dt, B, C = (pick(swapped[name]) for name in names[1:])
        y = scan(u, dt, A[own], B, C, D[own], delta_bias=bias[own], delta_softplus=True)
        return y if inverse is None else y[:, :, inverse[k]]

    def step() -> None:
        y = direction(0)
        for k in range(1, shape.directions):
            y = y + direction(k)
        torch.autograd.grad(y, [*swapped.values(), A, D, bias], target)

    return step


def contestants(shape: Shape, device: str) -> dict[str, Step]:
    from transmamba.ops import selective_scan

    found: dict[str, Step] = {}
    for backend in ("nvrtc", "triton", "chunked"):
        step = own_step(shape, device, backend)
        try:
            step()
            found[backend] = step
        except (NotImplementedError, RuntimeError) as error:  # refused, or no memory
            print(f"{backend} does not run here: {error}", file=sys.stderr)
    if shape.directions == 1:
        found["triton, (b d l)"] = drop_in_step(shape, device, partial(selective_scan, backend="triton"))
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        found["mamba-ssm"] = drop_in_step(shape, device, selective_scan_fn)
        found["mamba-ssm"]()
    except Exception as error:
        print(f"mamba-ssm does not run here: {error!r}", file=sys.stderr)
        found.pop("mamba-ssm", None)
    return found


def timed(step: Step, device: str) -> float:
    """Measure the seconds of one call."""
    if device == "cpu":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def peak(step: Step, device: str) -> int:
    """Measure the bytes above those that are allocated before the call."""
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def copy_bandwidth(device: str) -> float:
    """Measure the bytes per second of a large copy, read and written."""
    source = torch.empty(2**28 if device != "cpu" else 2**22, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [timed(lambda: target.copy_(source), device) for _ in range(20)]
    return 2 * source.numel() / statistics.median(times)


def least_bytes(shape: Shape) -> int:
    """Count the least bytes: u, dt, B, C read twice, y written, its gradient read, four gradients written; bfloat16."""
    batch, length, dim, state, directions, by_step = shape
    own = 1 if by_step else directions
    moved_thrice = dim + own * dim + directions * state + own * state
    return 2 * batch * length * (3 * moved_thrice + 2 * dim)


def exponential_rate(device: str) -> float:
    """Return exponentials per second: 16 a cycle on each multiprocessor. On a CPU there is no limit."""
    if device == "cpu":
        return float("inf")
    properties = torch.cuda.get_device_properties(device)
    # kHz; torch before 2.6 has no clock, an H100 runs at this one
    return 16 * properties.multi_processor_count * getattr(properties, "clock_rate", 1_755_000) * 1e3


def elements(shape: Shape) -> int:
    """Count the exponentials of a pass: directions that share dt and A share them."""
    own = 1 if shape.by_step else shape.directions
    return shape.batch * own * shape.length * shape.dim * shape.state


def measure(name: str, shape: Shape, arguments: argparse.Namespace, bandwidth: float) -> None:
    steps = contestants(shape, arguments.device)
    limits = least_bytes(shape) / bandwidth, 2 * elements(shape) / exponential_rate(arguments.device)
    for what, limit in zip(("the least traffic, copied", "one exponential an element"), limits, strict=True):
        print(f"| {name} {tuple(shape[:5])} | limit: {what} | {limit * 1e3:.3f} | | | | |")
    times: dict[str, list[float]] = {who: [] for who in steps}
    for round_ in range(arguments.repeat + (0 if arguments.tiny else 3)):
        for who, step in steps.items():
            seconds = timed(step, arguments.device)
            if arguments.tiny or round_ >= 3:
                times[who].append(seconds)
    peer = statistics.median(times["mamba-ssm"]) if "mamba-ssm" in times else None
    for who, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else 3 * seconds
        ratio = "" if peer is None else f"{peer / middle:.2f}x"
        copy, exponential = (f"{limit / middle:.0%}" for limit in limits)
        memory = peak(steps[who], arguments.device) / 2**20
        spread = f"{middle * 1e3:.3f} ({low * 1e3:.3f}-{high * 1e3:.3f})"
        print(
            f"| {name} {tuple(shape[:5])} | {who} | {spread} | {ratio} | {memory:.0f} | {copy} | {exponential} |",
            flush=True,
        )


def describe(device: str) -> None:
    versions = {"torch": torch.__version__}
    for package in ("triton", "mamba-ssm"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    machine = torch.cuda.get_device_name() if device != "cpu" else "CPU, Triton interpreted: the times mean nothing"
    print(f"{machine}; {time.strftime('%Y-%m-%d')}; {', '.join(f'{k} {v}' for k, v in versions.items())}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batch", type=int, help="instead of each shape's own")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        # before the first import of triton, which looks at it once
        os.environ["TRITON_INTERPRET"] = "1"
    describe(arguments.device)
    bandwidth = copy_bandwidth(arguments.device)
    print(f"copy: {bandwidth / 1e9:.0f} GB/s\n")
    print(
        "| shape (b, l, d, n, k) | kernel | ms, quartiles | against mamba-ssm | peak MiB | of copy | of exponentials |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.shapes:
        shape = SHAPES[name]._replace(**({"batch": arguments.batch} if arguments.batch else {}))
        if arguments.tiny:
            shape = shape._replace(batch=1, length=6, dim=3, state=min(shape.state, 2))
        measure(name, shape, arguments, bandwidth)


if __name__ == "__main__":
    main()
