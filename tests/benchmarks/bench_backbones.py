"""Images per second of Vim-T and VMamba-T on a CPU: OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_backbones

Contenders take turns in one process; figures are medians of CPU times, ratios are taken round by round.

- "here": the model on the default backend.
- "loop": the same model with the scan that the official repositories run on a CPU: everything of size (batch, channels,
  length, states) at once, then a loop that indexes the length. Its backward is quadratic in the length, so it is
  timed once.
- "transformers": a `MambaModel` of the same width and depth over as many tokens, once per direction (Vim only; it has
  no patches and no head, which is in its favour).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MambaConfig, MambaModel

from transmamba import models
from transmamba.ops.dispatch import TABLE, Backend, use_backend
from transmamba.ops.scan.inputs import ScanInputs

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution")


def loop(problem: ScanInputs) -> tuple[Tensor, Tensor]:
    """Scan by indexing, one direction after the other on permuted copies."""
    p, (batch, directions, length, channels, state) = problem, problem.sizes
    y = p.u.new_zeros(batch, directions, length, channels)
    last = []
    for k in range(directions):

        def pick(x: Tensor, k: int = k) -> Tensor:
            x = x[:, k if x.shape[1] > 1 else 0]
            return x if p.orders is None else x[:, p.orders[k]]

        u, dt, B, C = pick(p.u), pick(p.dt), pick(p.B), pick(p.C)
        dt = dt if p.dt_bias is None else dt + p.dt_bias[k if len(p.dt_bias) > 1 else 0]
        dt = F.softplus(dt) if p.softplus else dt
        A = p.A[k if len(p.A) > 1 else 0]
        decay = torch.exp(torch.einsum("bld,nd->bdln", dt, A))
        added = torch.einsum("bld,bln,bld->bdln", dt, B, u)
        h, outputs = decay.new_zeros(batch, channels, state), []
        for i in range(length):
            h = decay[:, :, i] * h + added[:, :, i]
            outputs.append(torch.einsum("bdn,bn->bd", h, C[:, i]))
        out = torch.stack(outputs, 1)
        out = out if p.D is None else out + p.D[k if len(p.D) > 1 else 0] * u
        y[:, k] = out if p.orders is None else out[:, p.orders[k].argsort()]
        last.append(h)
    return (y.sum(1, keepdim=True) if p.merge else y), torch.stack(last, 1).mT


class BothWays(nn.Module):
    """transformers' Mamba over the tokens and over the reversed tokens."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        config = MambaConfig(hidden_size=dim, num_hidden_layers=depth, state_size=16, vocab_size=8, use_cache=False)
        self.forward_model, self.backward_model = MambaModel(config), MambaModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return (
            self.forward_model(inputs_embeds=tokens).last_hidden_state
            + self.backward_model(inputs_embeds=tokens.flip(1)).last_hidden_state
        )


def contenders(name: str, batch: int) -> dict[str, tuple[nn.Module, Tensor, str]]:
    """Return model, input and backend by contender."""
    images = torch.randn(batch, 3, 224, 224)
    model = models.vim_tiny() if name == "vim_tiny" else models.vmamba_tiny_s1l8()
    found = {"here": (model, images, "auto"), "loop": (model, images, "loop")}
    if name == "vim_tiny":
        found["transformers"] = (BothWays(192, 24), torch.randn(batch, 197, 192), "auto")
    return found


def clock(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def forward(model: nn.Module, x: Tensor, backend: str) -> None:
    with torch.no_grad(), use_backend(backend):
        model(x)


def step(model: nn.Module, x: Tensor, backend: str) -> None:
    with use_backend(backend):
        model(x).square().mean().backward()
    model.zero_grad()


def shared_part(model: nn.Module, x: Tensor, repeats: int) -> float:
    """Run the part of our forward that is matrix products and dense convolutions, which every contender computes too.

    A contender's ratio divided by this part is the ratio that it would have if all the rest of our forward were free.
    """
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(repeats):
            model(x)
    own = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    return sum(own.get(f"aten::{op}", 0.0) for op in PRODUCTS) / sum(own.values())


def report(name: str, batch: int, repeats: int, *, slow_steps: bool) -> None:
    todo = contenders(name, batch)
    for title, run in (("forward", forward), ("training step", step)):
        times: dict[str, list[float]] = {who: [] for who in todo}
        forward(*todo["here"])
        for turn in range(repeats):
            for who, (model, x, backend) in todo.items():
                if run is step and who != "here" and (turn > 0 or not slow_steps):
                    continue
                times[who].append(clock(lambda m=model, x=x, b=backend, r=run: r(m, x, b)))
        mine = statistics.median(times["here"])
        for who, found in times.items():
            if found:
                ratio = statistics.median(found) / mine
                rate = batch / statistics.median(found)
                print(f"| {name} | {title} | {who} | {rate:.2f} | {ratio:.1f} |", flush=True)
    part = shared_part(*todo["here"][:2], repeats)
    print(f"{name}: {part:.2f} of our forward are matrix products and convolutions", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--no-slow-steps", dest="slow_steps", action="store_false", help="leave out minutes of backward"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    TABLE["scan"] = (*TABLE["scan"], Backend("loop", loop, lambda problem: []))
    print("| model | pass | who | images per CPU second | times slower |\n|---|---|---|--:|--:|")
    for name in ("vim_tiny", "vmamba_tiny_s1l8"):
        report(name, options.batch, options.repeats, slow_steps=options.slow_steps)
