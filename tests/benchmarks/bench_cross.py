"""The cross scan against a plain scan in its place, native on the CPU.

python -m tests.benchmarks.bench_cross time --repeats 7
python -m tests.benchmarks.bench_cross memory

Without a cross scan, queries at the end of the context cost a plain scan whose outputs nobody reads, and queries in
between are woven into the context as steps of size zero. As in bench_native, contenders take turns, ratios are medians
over rounds of CPU times of the same round, and peaks are those above the inputs, in a fresh process.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from tests.benchmarks.bench_native import Run, _status, cpu_seconds, passes, spread
from transmamba.ops import cross_scan, multi_scan, scan_orders
from transmamba.ops.native import library

# batch, context, queries, channels, states, directions
SHAPES = {
    "vqa": (1, 576, 128, 2048, 16, 2),
    "retrieval": (8, 588, 32, 768, 16, 2),
    "equal": (2, 1024, 1024, 768, 16, 1),
    "small": (1, 64, 64, 64, 16, 1),
} | {f"{length}x{queries}": (1, length, queries, 384, 16, 1) for length in (1024, 4096) for queries in (1024, 4096)}


class Data:
    """Inputs of a shape; steps and decays as in Mamba's initialisation, queries spread evenly over the context."""

    def __init__(self, shape: str):
        batch, length, queries, dim, state, k = SHAPES[shape]
        self.u, self.dt = torch.randn(batch, k, length, dim), 0.5 * torch.randn(batch, k, length, dim)
        self.A = -torch.arange(1, state + 1.0) * (0.5 + torch.rand(k, dim, 1))
        self.B, self.C = torch.randn(batch, k, length, state), torch.randn(batch, k, queries, state)
        self.bias = torch.log(torch.expm1(torch.exp(torch.empty(k, dim).uniform_(-6.9, -2.3))))
        self.directions, self.length, self.queries = ("forward", "backward")[:k], length, queries
        self.orders = scan_orders(self.directions, length)
        self.reads = (-(-torch.arange(1, queries + 1) * length // queries) - 1).expand(batch, -1)
        self.grad = torch.randn(batch, queries, dim)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.u, self.dt, self.A, self.B, self.C, self.bias]


def fused(data: Data, reads: Tensor | None) -> Run:
    leaves, options = data.leaves, {"softplus": True, "orders": data.orders, "merge": True, "backend": "native"}
    return leaves, lambda: cross_scan(*leaves[:5], reads=reads, dt_bias=leaves[5], **options), data.grad


def plain_to_the_end(data: Data) -> Run:
    """Return the last state of a plain scan whose outputs are thrown away."""
    leaves, options = data.leaves, {"softplus": True, "orders": data.orders, "merge": True, "backend": "native"}

    def forward() -> Tensor:
        u, dt, A, B, C, bias = leaves
        _, last = multi_scan(u, dt, A, B, B, dt_bias=bias, return_last_state=True, **options)
        return einsum(C, last, "b k token n, b k inner n -> b token inner")

    return leaves, forward, data.grad


def woven(data: Data) -> Run:
    """Turn queries into steps of size zero behind (backward: in front of) the token they read after."""
    leaves, (batch, k) = data.leaves, data.u.shape[:2]
    side = torch.tensor([0.5, -0.5])[:k, None]
    keys = torch.cat([torch.arange(data.length).expand(batch, k, -1), data.reads[:, None] + side], -1)
    order = keys.argsort(dim=-1, stable=True)
    orders = scan_orders(data.directions, data.length + data.queries)
    place = order.argsort(-1)[:, :, data.length :, None]

    def weave(x: Tensor) -> Tensor:
        return x.gather(2, order[..., None].expand(-1, -1, -1, x.shape[-1]))

    def forward() -> Tensor:
        u, dt, A, B, C, bias = leaves
        behind = (0, 0, 0, data.queries)
        inputs = weave(F.pad(u, behind)), weave(F.pad(dt, behind, value=-torch.inf)), A, weave(F.pad(B, behind))
        C = weave(F.pad(C, (0, 0, data.length, 0)))
        y = multi_scan(*inputs, C, dt_bias=bias, softplus=True, orders=orders, backend="native")
        return y.gather(2, place.expand(-1, -1, -1, y.shape[-1])).sum(1)

    return leaves, forward, data.grad


CONTENDERS = {
    "final": (lambda data: fused(data, None), plain_to_the_end),
    "progress": (lambda data: fused(data, data.reads), woven),
}


def measure(shape: str, readout: str, repeats: int) -> None:
    """Print times and ratios of one shape and readout."""
    calls = [passes(contender(Data(shape))) for contender in CONTENDERS[readout]]
    rounds = []
    for i in range(repeats + 1):
        taken = [[cpu_seconds(call) for call in pair] for pair in calls]
        if i:
            rounds.append(taken)
    for which, name in enumerate(("forward", "forward+backward")):
        ratios = [old[which] / new[which] for new, old in rounds]
        new, old = (statistics.median(r[side][which] for r in rounds) * 1e3 for side in (0, 1))
        print(f"{shape:10} {readout:9} {name:17} {new:8.2f} ms, before {old:8.2f} ms: x {spread(ratios)}", flush=True)


def peak(shape: str, readout: str, side: int, both: bool) -> float:
    """Measure MiB above the inputs at the peak; call it in a fresh process."""
    contender = CONTENDERS[readout][side]
    for call in passes(contender(Data("small"))):
        call()  # libraries and thread pools do not count
    calls = passes(contender(Data(shape)))
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    calls[both]()
    return (_status("VmHWM") - before) / 1024


def memory(shapes: list[str]) -> None:
    """Print peaks, each measured in a process of its own."""
    for shape in shapes:
        for readout in CONTENDERS:
            found = []
            for side in ("0", "1"):
                for both in ([], ["--both"]):
                    command = [sys.executable, "-m", "tests.benchmarks.bench_cross", "peak", shape]
                    command += ["--readout", readout, "--side", side, *both]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found.append(float(done.stdout))
            print(
                f"{shape:10} {readout:9} forward {found[0]:7.1f} MiB, before {found[2]:7.1f}; "
                f"forward+backward {found[1]:7.1f} MiB, before {found[3]:7.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("time", "memory", "peak"))
    parser.add_argument("shapes", nargs="*", default=[])
    parser.add_argument("--readout", choices=tuple(CONTENDERS), default="final")
    parser.add_argument("--side", type=int, default=0, help="of peak: 0 is the cross scan, 1 its predecessor")
    parser.add_argument("--both", action="store_true", help="of peak: forward and backward")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if options.what == "peak":
        return print(peak(options.shapes[0], options.readout, options.side, options.both))
    print(f"torch {torch.__version__}, {library.variants()[0]}, one thread, load {os.getloadavg()[0]:.1f}")
    shapes = options.shapes or [s for s in SHAPES if s != "small" and (options.what == "memory" or "x" not in s)]
    if options.what == "memory":
        return memory(shapes)
    for shape in shapes:
        for readout in CONTENDERS:
            measure(shape, readout, options.repeats)
    return None


if __name__ == "__main__":
    main()
