"""The cost of distillation in a training step: PlainMamba-T from DeiT-S or DeiT-B, 12 layers, both directions.

    python tests/benchmarks/bench_distill.py [--teacher 384 768] [--repeat 5] [--device cpu] [--forms naive sliced]

Times are processor time of one thread (device time on a GPU), medians, the forms taking turns. The share is of
teacher forward + student forward and backward.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transmamba.distill import BidirectionalDistill, LayerCalibrators, sample_tokens
from transmamba.models.vision_mamba import SNAKES, VisionMamba
from transmamba.models.vit import ViT

DEPTH, WIDTH, GRID, BATCH = 12, 192, 14, 8


class Naive(nn.Module):
    """The peer: pad, full linear layers, flip the student, normalise the teacher for every layer again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)) for _ in range(DEPTH)
        )
        for one in self.maps:
            nn.init.zeros_(one[2].weight)
            nn.init.zeros_(one[2].bias)

    def forward(self, forward: list[Tensor], backward: list[Tensor], teacher: Tensor) -> Tensor:
        return self._direction(forward, teacher) + self._direction([x.flip(1) for x in backward], teacher)

    def _direction(self, layers: list[Tensor], teacher: Tensor) -> Tensor:
        cosines = []
        for one, layer in zip(self.maps, layers, strict=True):
            padded = F.pad(layer, (0, teacher.shape[-1] - layer.shape[-1]))
            cosines.append(F.cosine_similarity(padded + one(padded), teacher, dim=-1).mean())
        cosine = torch.stack(cosines)
        clamped = cosine.detach().clamp(1e-2, 1)
        return (torch.softmax(clamped.mean() / clamped, 0) * (1 - cosine)).sum()


class Ours(nn.Module):
    """Calibrators and loss of the library, on every `stride`-th layer and a share of the tokens."""

    def __init__(self, width: int, *, stride: int = 1, tokens: int | None = None, **options: object) -> None:
        super().__init__()
        self.stride, self.tokens = stride, tokens
        self.calibrators = LayerCalibrators([WIDTH] * (DEPTH // stride), width, **options)
        self.distill = BidirectionalDistill(order="scan" if tokens is None else "raster")

    def forward(self, forward: list[Tensor], backward: list[Tensor], teacher: Tensor) -> Tensor:
        chosen = slice(self.stride - 1, None, self.stride)
        forward, backward = forward[chosen], backward[chosen]
        if self.tokens is not None:
            sample = sample_tokens(teacher.shape[1], self.tokens, device=teacher.device)
            forward, teacher = [sample.take(x) for x in forward], sample.take(teacher)
            backward = [sample.take(x, "backward") for x in backward]
        return self.distill(self.calibrators(forward), self.calibrators(backward), teacher)


FORMS: dict[str, Callable[[int], nn.Module]] = {
    "naive": Naive,
    "sliced": Ours,
    "sliced, channels placed": lambda width: Ours(width, pad=torch.randperm(width)[:WIDTH].sort().values),
    "sliced, recompute": lambda width: Ours(width, recompute=True),
    "bottleneck": lambda width: Ours(width, hidden_dim=WIDTH),
    "one layer (pad_linear)": lambda width: Ours(width, mode="pad_linear"),
    "padding only": lambda width: Ours(width, mode="pad"),
    "bottleneck, every 3rd layer": lambda width: Ours(width, hidden_dim=WIDTH, stride=3),
    "bottleneck, every 2nd layer": lambda width: Ours(width, hidden_dim=WIDTH, stride=2),
    "bottleneck, 1/4 of tokens": lambda width: Ours(width, hidden_dim=WIDTH, tokens=49),
    "bottleneck, every 2nd layer, 1/4 of tokens": lambda width: Ours(width, hidden_dim=WIDTH, stride=2, tokens=49),
    "sliced, every 3rd layer": lambda width: Ours(width, stride=3),
    "sliced, 1/8 of tokens": lambda width: Ours(width, tokens=25),
}


def clock(step: Callable[[], object], device: str) -> float:
    """Measure the seconds of one step."""
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    step()
    end_event.record()
    torch.cuda.synchronize()
    return start_event.elapsed_time(end_event) / 1e3


def medians(steps: dict[str, Callable[[], object]], repeat: int, device: str) -> dict[str, float]:
    """Measure the median seconds of each step; the steps take turns so that a slow minute falls on all of them."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeat):
        for name, step in steps.items():
            times[name].append(clock(step, device))
    return {name: statistics.median(values) for name, values in times.items()}


def kept(loss: Callable[[], Tensor], given: list[Tensor]) -> int:
    """Count the bytes that the loss keeps for its backward, beyond the features, the teacher and the parameters."""
    known = {x.untyped_storage().data_ptr() for x in given}
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = loss()
    return sum(sizes.values()) if result.requires_grad else 0


def bench(width: int, arguments: argparse.Namespace) -> None:
    device = arguments.device
    torch.manual_seed(0)
    images = torch.randn(arguments.batch, 3, 16 * GRID, 16 * GRID, device=device)
    student = VisionMamba(dim=WIDTH, depth=DEPTH, orders=SNAKES, mlp=False, num_classes=100).to(device)
    teacher = ViT(dim=width, depth=DEPTH, heads=width // 64, num_classes=100).to(device).requires_grad_(False)
    shape = (arguments.batch, GRID * GRID)
    forward, backward = (
        [torch.randn(*shape, WIDTH, device=device, requires_grad=True) for _ in range(DEPTH)] for _ in range(2)
    )
    target = torch.randn(*shape, width, device=device)

    def distil(form: nn.Module) -> Callable[[], object]:
        wanted = [*forward, *backward, *form.parameters()]
        step = torch.compile(form, fullgraph=True) if arguments.compile else form
        return lambda: torch.autograd.grad(step(forward, backward, target), wanted, allow_unused=True)

    def autocast(step: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=arguments.bf16):
                step()

        return run

    steps = {
        "teacher forward": lambda: teacher(images),
        "student forward + backward": lambda: student(images).square().sum().backward(),
    }
    forms = {name: FORMS[name](width).to(device) for name in arguments.forms}
    bytes_kept = {
        name: kept(lambda form=form: form(forward, backward, target), [*forward, *backward, target, *form.parameters()])
        for name, form in forms.items()
    }
    steps |= {name: distil(form) for name, form in forms.items()}
    seconds = medians({name: autocast(step) for name, step in steps.items()}, arguments.repeat, device)
    base = seconds["teacher forward"] + seconds["student forward + backward"]
    print(f"\nteacher width {width}, batch {arguments.batch}, {device}")
    for name, value in seconds.items():
        memory = f"{bytes_kept[name] / 2**20:8.0f} MiB kept" if name in bytes_kept else ""
        print(f"{name:45s} {value * 1e3:9.1f} ms  {value / base:6.1%}  {memory}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--teacher", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for width in arguments.teacher:
        bench(width, arguments)


if __name__ == "__main__":
    main()
