"""The native CPU scan against its peers and against this machine's own limits.

python -m tests.benchmarks.bench_native time vim plain lm tiny vmamba --repeats 7
python -m tests.benchmarks.bench_native length --repeats 5
python -m tests.benchmarks.bench_native memory vim plain lm tiny vmamba
python -m tests.benchmarks.bench_native sharing plain plain2 --repeats 31
python -m tests.benchmarks.bench_native threads vim plain lm tiny vmamba --threads 2

One thread; each shape has a process of its own. Contenders take turns within a round, and a ratio is the median over
rounds of CPU times of the same round, with its smallest and largest value, so that other work on the machine touches
both sides alike (`threads` compares wall times: idle machine). Peers without directions are called once per direction
on permuted copies. Peak memory is above the inputs, in a fresh process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.ops import multi_scan, selective_scan
from transmamba.ops.native import build, library
from transmamba.ops.scan import native
from transmamba.ops.scan.inputs import ScanInputs

# batch, length, channels, states, directions
SHAPES = {
    "vim": (8, 197, 384, 16, 1),
    "plain": (8, 196, 384, 16, 4),
    "vmamba": (8, 3136, 192, 1, 4),
    "lm": (1, 2048, 1536, 16, 1),
    "tiny": (64, 64, 128, 16, 1),
    "small": (1, 64, 64, 16, 1),
    "plain2": (2, 196, 384, 16, 4),
    # one direction, for contenders without several
    "plain1": (8, 196, 384, 16, 1),
    "vmamba1": (8, 3136, 192, 1, 1),
} | {f"L{length}": (1, length, 384, 16, 1) for length in (256, 512, 1024, 2048, 4096, 8192, 16384)}


class Data:
    """Inputs of a shape, channel-last; steps from 1e-3 to 1e-1, decays as in Mamba's initialisation."""

    def __init__(self, shape: str):
        batch, length, dim, state, k = SHAPES[shape]
        self.k, self.side = k, int(length**0.5)
        self.u = torch.randn(batch, length, dim)
        self.dt = 0.5 * torch.randn(batch, k, length, dim)
        self.A = -torch.arange(1, state + 1.0) * (0.5 + torch.rand(k, dim, 1))
        self.B, self.C = torch.randn(batch, k, length, state), torch.randn(batch, k, length, state)
        self.D = torch.ones(k, dim)
        self.bias = torch.log(torch.expm1(torch.exp(torch.empty(k, dim).uniform_(-6.9, -2.3))))
        rows = torch.arange(length)
        columns = rows.view(self.side, -1).T.reshape(-1) if k > 1 else rows
        self.orders = torch.stack([rows, rows.flip(0), columns, columns.flip(0)][:k])
        self.grad = torch.randn(batch, k, length, dim)


Run = tuple[list[Tensor], Callable[[], Tensor], Tensor]  # leaves, forward, gradient of its output


def ours(data: Data, **options) -> Run:
    leaves = [data.u, data.dt, data.A, data.B, data.C, data.D, data.bias]
    orders = data.orders if data.k > 1 else None
    options = {"orders": orders, "softplus": True, "backend": "native"} | options
    return leaves, lambda: multi_scan(*leaves[:6], dt_bias=leaves[6], **options), data.grad


def chunked(data: Data) -> Run:
    """Run the fallback in plain torch."""
    return ours(data, backend="chunked")


def shared_decay(data: Data, **options) -> Run:
    """Share dt, A, C, D and bias between all directions, by step: PlainMamba's published form."""
    data.dt, data.A, data.D, data.bias = data.dt[:, :1].clone(), data.A[:1], data.D[:1], data.bias[:1]
    data.C = data.C[:, :1].clone()
    return ours(data, parameters_by_step=True, **options)


def shared_apart(data: Data, **options) -> Run:
    """Pass the same dt, A, D and bias once per direction, so that no decay is shared."""
    data.dt, data.C = data.dt[:, :1].repeat(1, data.k, 1, 1), data.C[:, :1].clone()
    return ours(data, parameters_by_step=True, **options)


def merged_run(make: Callable[..., Run]) -> Callable[[Data], Run]:
    """Run the same with the directions summed."""

    def merged(data: Data) -> Run:
        leaves, forward, grad = make(data, merge=True)
        return leaves, forward, grad[:, 0].clone()

    return merged


def channel_first(data: Data) -> Run:
    """Scan (batch, dim, length) tensors in mamba-ssm's signature; one direction."""
    flip = [x.transpose(-1, -2).contiguous() for x in (data.u, data.dt[:, 0], data.B[:, 0], data.C[:, 0])]
    leaves = [*flip[:2], data.A[0], *flip[2:], data.D[0], data.bias[0]]
    call = lambda: selective_scan(*leaves[:6], None, leaves[6], True, backend="native")  # noqa: E731
    return leaves, call, data.grad[:, 0].transpose(-1, -2).contiguous()


def per_direction(data: Data, scan: Callable[..., Tensor], axis: int) -> Run:
    """Call a peer's scan over one sequence for every direction on permuted copies."""
    flip = (lambda x: x.transpose(-1, -2).contiguous()) if axis == -1 else (lambda x: x)
    leaves = [flip(data.u), flip(data.dt), data.A, flip(data.B), flip(data.C), data.D, data.bias]
    back = data.orders.argsort(-1)

    def forward() -> Tensor:
        u, dt, A, B, C, D, bias = leaves
        if data.k == 1:
            return scan(u, dt[:, 0], A[0], B[:, 0], C[:, 0], D[0], bias[0])[:, None]
        outputs = []
        for k, order in enumerate(data.orders):
            along = [x.index_select(axis, order) for x in (u, dt[:, k], B[:, k], C[:, k])]
            y = scan(*along[:2], A[k], *along[2:], D[k], bias[k])
            outputs.append(y.index_select(axis, back[k]))
        return torch.stack(outputs, 1)

    return leaves, forward, flip(data.grad)


def mambapy(data: Data) -> Run:
    from mambapy.mamba import MambaBlock

    def scan(u, dt, A, B, C, D, bias):
        return MambaBlock.selective_scan(None, u, F.softplus(dt + bias), A, B, C, D)

    return per_direction(data, scan, -2)


def transformers(data: Data) -> Run:
    """Run the fastest CPU path of transformers: its scan on top of mambapy."""
    from transformers.models.mamba import modeling_mamba

    def scan(u, dt, A, B, C, D, bias):
        # behind the dispatcher of compiled kernels
        return modeling_mamba.mamba_selective_scan.__wrapped__(u, dt, A, B, C, D, None, bias, True, use_mambapy=True)

    return per_direction(data, scan, -1)


CONTENDERS = {
    "native": ours,
    "chunked": chunked,
    "merged": merged_run(ours),
    "shared decay": shared_decay,
    "shared apart": shared_apart,
    "merged shared": merged_run(shared_decay),
    "merged apart": merged_run(shared_apart),
    "channel first": channel_first,
    "mambapy": mambapy,
    "transformers": transformers,
}


def passes(run: Run) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a forward without gradients, and a forward with backward."""
    leaves, forward, grad = run
    leaves[:] = [x.detach().requires_grad_() for x in leaves]

    def both() -> None:
        for x in leaves:
            x.grad = None
        forward().backward(grad)

    return torch.no_grad()(forward), both


def problem_of(data: Data, **options) -> ScanInputs:
    p = ScanInputs(data.u[:, None], data.dt, data.A.transpose(-1, -2).contiguous(), data.B, data.C, data.D, data.bias)
    return p._replace(orders=data.orders if data.k > 1 else None, softplus=True, **options)


def variant_passes(data: Data, variant: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Call the backend directly with another instruction set."""
    p = problem_of(data)

    def both() -> None:
        _, _, saved = native.forward(p, True, variant=variant)
        native.backward(p, saved, data.grad, None, variant=variant)

    return lambda: native.forward(p, False, variant=variant), both


def kernel_alone(p: ScanInputs) -> Callable[[], object]:
    """Run the compiled forward without Python around it, into outputs that exist already."""
    calls: list[tuple[tuple, dict]] = []
    with mock.patch.object(native, "run", lambda *args, **options: calls.append((args, options))):
        outputs = native.forward(p, False)

    def call(kept=(p, outputs)) -> None:  # the kernel follows pointers into them
        args, options = calls[0]
        library.run(*args, **options)

    return call


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def limits(folder: str) -> Callable[[], dict[str, float]]:
    """Compile limits.cpp for the fastest instruction set; each call measures the machine again."""
    flags = [*build.FLAGS, *build.ARITHMETIC, *build.VARIANTS.get(library.variants()[0], []), "-Wno-psabi"]
    program, source = str(Path(folder, "limits")), Path(__file__).with_name("limits.cpp")
    compiler = build.compiler() or sys.exit("the limits need a C++ compiler")
    subprocess.run([*compiler, *flags, str(source), "-o", program], check=True)
    return lambda: json.loads(subprocess.run([program], capture_output=True, check=True).stdout)


def spread(values: list[float], form: str = ".2f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def measure(shape: str, names: list[str], repeats: int, limit: Callable[[], dict[str, float]]) -> None:
    """Print times and ratios of one shape, and shares of the machine's limits as they were before and after."""
    calls = {name: passes(CONTENDERS[name](Data(shape))) for name in names if name in CONTENDERS}
    calls |= {name: variant_passes(Data(shape), name) for name in names if name in library.variants()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    warm = []
    kernel, _ = variant_passes(Data(shape), library.variants()[0])
    batch, length, dim, state, k = SHAPES[shape]
    machine = [limit()]
    for i in range(repeats + 1):
        for name, (forward, both) in calls.items():
            taken = cpu_seconds(forward), cpu_seconds(both)
            if i:
                seconds[name].append(taken)
        kernel()
        if i:
            warm.append(cpu_seconds(kernel))
    machine.append(limit())
    rate = statistics.mean(m["n1" if state == 1 else "n16"] for m in machine)
    shares, warm_shares = (
        [batch * length * dim * state * k / rate / t for t in times]
        for times in ([t[0] for t in seconds["native"]], warm)
    )
    best = [statistics.median(column) for column in zip(*seconds["native"], strict=True)]
    print(f"{shape}: native {best[0] * 1e3:.2f} ms, {best[1] * 1e3:.2f} ms")
    print(f"  share of the bare recurrence {spread(shares)}, of the backend called again at once {spread(warm_shares)}")
    for name, taken in seconds.items():
        ratios = [[t[i] / o[i] for t, o in zip(taken, seconds["native"], strict=True)] for i in (0, 1)]
        print(f"  {name:14} forward x {spread(ratios[0])}   forward+backward x {spread(ratios[1])}", flush=True)


def sharing(shape: str, repeats: int) -> None:
    """Print the gain of the compiled forward from decays that directions share, from cold caches and again at once."""
    other = torch.empty(12 << 20)
    for merge in (False, True):
        alone = []
        for prepare in (shared_decay, shared_apart):
            torch.manual_seed(0)
            prepare(data := Data(shape))
            alone.append(kernel_alone(problem_of(data, parameters_by_step=True, merge=merge)))
        taken: list[list[list[float]]] = [[], []]
        for i in range(repeats + 1):
            times = []
            for call in alone:
                other.fill_(1.0)
                times.append((cpu_seconds(call), cpu_seconds(call)))
            for rounds, pair in zip(taken, zip(*times, strict=True), strict=True):
                rounds += [pair] if i else []
        for state, rounds in zip(("cold", "warm"), taken, strict=True):
            shared, apart = (statistics.median(column) * 1e3 for column in zip(*rounds, strict=True))
            ratio = spread([b / a for a, b in rounds])
            print(
                f"{shape}{', merged' * merge}, {state}: shared {shared:.2f} ms, apart {apart:.2f} ms, x {ratio}",
                flush=True,
            )


def threads(shape: str, count: int, repeats: int) -> None:
    """Print how many times faster `count` threads are than one, by wall time and taking turns."""
    calls = passes(ours(Data(shape)))
    taken: dict[int, list[list[float]]] = {1: [], count: []}
    for i in range(repeats + 1):
        for number, found in taken.items():
            torch.set_num_threads(number)
            starts = [time.perf_counter()]
            for call in calls:
                call()
                starts.append(time.perf_counter())
            if i:
                found.append([starts[1] - starts[0], starts[2] - starts[1]])
    ratios = [[one[i] / more[i] for one, more in zip(taken[1], taken[count], strict=True)] for i in (0, 1)]
    print(
        f"{shape:7} {count} threads: forward x {spread(ratios[0])}   forward+backward x {spread(ratios[1])}", flush=True
    )


def peak(shape: str, name: str, both: bool) -> float:
    """Measure MiB above the inputs at the peak; call it in a fresh process."""
    forward, training = passes(CONTENDERS[name](Data("small")))
    forward(), training()  # libraries and thread pools do not count
    calls = passes(CONTENDERS[name](Data(shape)))
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    calls[both]()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def memory(shapes: list[str], names: list[str]) -> None:
    """Print peaks, each measured in a process of its own."""
    for shape in shapes:
        for name in names:
            command = [sys.executable, "-m", "tests.benchmarks.bench_native", "peak", shape, "--names", name]
            lines = [
                subprocess.run([*command, *o], capture_output=True, text=True, check=True).stdout
                for o in ([], ["--both"])
            ]
            forward, both = (float(line) for line in lines)
            print(f"{shape:7} {name:13} forward {forward:8.1f} MiB   forward+backward {both:8.1f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("time", "length", "memory", "sharing", "threads", "peak"))
    parser.add_argument("shapes", nargs="*", default=[])
    parser.add_argument("--names", nargs="+", default=None, help="native first; instruction sets are names too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of threads: compared with one")
    parser.add_argument("--both", action="store_true", help="of peak: forward and backward")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if options.what == "peak":
        return print(peak(options.shapes[0], options.names[0], options.both))
    print(f"torch {torch.__version__}, {library.variants()[0]}, load {os.getloadavg()[0]:.1f}")
    if options.what == "threads":
        for shape in options.shapes:
            threads(shape, options.threads, options.repeats)
        return None
    if options.what == "sharing":
        for shape in options.shapes:
            sharing(shape, options.repeats)
        return None
    if options.what == "memory":
        return memory(options.shapes, options.names or ["native", "mambapy"])
    shapes = [s for s in SHAPES if s.startswith("L")] if options.what == "length" else options.shapes
    if len(shapes) > 1:
        # the gigabytes of one shape change the allocator, hence the times of the next
        for shape in shapes:
            names = ["--names", *options.names] if options.names else []
            command = [sys.executable, "-m", "tests.benchmarks.bench_native", "time", shape, *names]
            subprocess.run([*command, "--repeats", str(options.repeats)], check=True)
        return None
    with tempfile.TemporaryDirectory() as folder:
        limit = limits(folder)
        print("limits of one core (elements/s, elements/s, bytes/s):", limit())
        for shape in shapes:
            measure(shape, options.names or ["native", "mambapy", "transformers"], options.repeats, limit)
    return None


if __name__ == "__main__":
    main()
