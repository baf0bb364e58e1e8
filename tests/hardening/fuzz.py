"""Spoil one argument of a valid call, and check the outcome. A program of its own, because a kernel may end it:

    python -m tests.hardening.fuzz ops --rounds 3

tries every change of every argument three times, on other sizes each time, and prints every kind of failure once.
`--share 0.1` tries a tenth of the changes, chosen by the seed. Warnings are errors.
"""

import argparse
import faulthandler
import math
import random
import re
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.hardening.examples import EXAMPLES, Call, Sizes

# errors that any call may raise; docs/errors.md
DOCUMENTED = (ValueError, TypeError, NotImplementedError)
# torch's own words where a module's weights and its input have different homes
TORCH = ("dtype", "scalar type", "device", "meta", "type (", "Float", "same type")
# errors of the caller's own model, function or plan are passed through
PASSED_ON = {"batches", "loss", "importance", "decay", "norm", "activation", "mixer", "select", "align"}
LIMIT = 60  # seconds for one example; a hang ends the program with a traceback


class Marker:
    """A type nobody expects."""


SCALARS: dict[str, Any] = {
    "none": None, "text": "x", "empty text": "", "bytes": b"1", "zero": 0, "negative": -1, "huge": 2**40,
    "beyond int64": 2**70, "fraction": 1.5, "nan": math.nan, "infinite": math.inf, "true": True, "list": [], "dict": {},
    "object": Marker(), "tensor": torch.tensor(1), "pair": (1, 2), "nested": [None], "texts": ["x", "y"],
    "integers": [7, -7], "mapping": {"x": "y"}, "module": nn.Identity(), "class": Marker,
}  # fmt: skip
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "transposed memory": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "offset": lambda x: torch.cat([x[:1], x])[1:],
    "with gradient": lambda x: x.detach().requires_grad_(x.is_floating_point()),
}
TENSORS: dict[str, Callable[[Tensor], Any]] = {
    **{str(d): lambda x, d=d: x.to(d) for d in (
        torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool,
        torch.complex64)},
    "meta": lambda x: x.to("meta"),
    "no batch": lambda x: x[:0],
    "no last": lambda x: x[..., :0],
    "no middle": lambda x: x.narrow(x.dim() // 2, 0, 0),
    "longer": lambda x: torch.cat([x, x], -1),
    "longer in the middle": lambda x: torch.cat([x, x], x.dim() // 2),
    "larger batch": lambda x: torch.cat([x, x]),
    "flat": lambda x: x.flatten(),
    "scalar": lambda x: x.flatten()[0],
    "one more axis": lambda x: x[None],
    "one axis less": lambda x: x[0],
    "expanded": lambda x: x[..., :1].expand_as(x),
    "sparse": lambda x: x.to_sparse(),
    "numpy": lambda x: x.detach().numpy(),
    "numbers": lambda x: x.tolist(),
    "large": lambda x: x * 1e30 if x.is_floating_point() else x + 2**40,
    "nan": lambda x: x * math.nan if x.is_floating_point() else -x.long() - 7,
    "parameter": lambda x: nn.Parameter(x, requires_grad=x.is_floating_point()),
}  # fmt: skip


def spoiled(value: Any, how: str, inside: bool) -> Any:
    """Change `value`; a sequence or mapping is changed in its first entry if `inside`."""
    if inside and isinstance(value, Mapping):
        first = next(iter(value))
        return {**value, first: spoiled(value[first], how, False)}
    if inside:
        rest = [spoiled(value[0], how, False), *value[1:]]
        return type(value)(*rest) if hasattr(value, "_fields") else type(value)(rest)
    return TENSORS[how](value) if isinstance(value, Tensor) and how in TENSORS else SCALARS[how]


def tensors(x: Any) -> Iterator[Tensor]:
    """Return all tensors inside x."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Mapping):
        yield from (t for value in x.values() for t in tensors(value))
    elif isinstance(x, (list, tuple)):
        yield from (t for value in x for t in tensors(value))


def run(call: Call) -> Any:
    """Return the result; a gradient through it must also come out."""
    result = call.function(**call.arguments)
    if call.then is not None:
        result = result(**call.then)
    losses = [t.float().sum() for t in tensors(result) if t.requires_grad and t.is_floating_point()]
    if losses and losses[0].device.type != "meta":
        torch.stack(losses).sum().backward()
    return result


def refused(error: BaseException, how: str) -> bool:
    """Check whether the error is a documented one."""
    if isinstance(error, DOCUMENTED):
        return bool(str(error).strip())
    words = str(error)
    if isinstance(error, IndexError) or re.search(
        "out of DATA bounds|device (string|index)|accelerator device|index .* is out of bounds|probability tensor",
        words,
        re.IGNORECASE,
    ):
        return True  # a token, class or device that does not exist, or chances that are none, in torch's words
    homes = how == "meta" or how.startswith("torch.")
    return isinstance(error, RuntimeError) and (how == "sparse" or homes and any(word in words for word in TORCH))


Make = Callable[[Sizes], Call]


def changes(make: Make, seed: int) -> Iterator[tuple[int, str, str, bool]]:
    """List every change of every argument: of the call or of the forward, the name, how, and whether inside."""
    call = make(Sizes(seed))
    for part, given in enumerate((call.arguments, call.then or {})):
        for name, value in given.items():
            inner = next(iter(value.values()) if isinstance(value, Mapping) else iter(value), None) if isinstance(
                value, (list, tuple, Mapping)) else None  # fmt: skip
            for held, inside in ((value, False), (inner, True)):
                if inside and held is None:
                    continue
                ways = [*TENSORS, *SCALARS] if isinstance(held, Tensor) else SCALARS
                yield from ((part, name, how, inside) for how in ways)


def try_spoiled(make: Make, seed: int, change: tuple[int, str, str, bool]) -> str | None:
    """Return the failure, or None for a result or a documented error."""
    part, name, how, inside = change
    call = make(Sizes(seed))
    given = (call.arguments, call.then)[part]
    if given is None or name not in given:
        return None
    try:
        given[name] = spoiled(given[name], how, inside)
    except (RuntimeError, IndexError, TypeError, NotImplementedError):
        return None  # this tensor cannot be changed in that way
    try:
        run(call)
    except Exception as error:
        if refused(error, how) or name in PASSED_ON:
            return None
        place = traceback.extract_tb(error.__traceback__)
        ours = next((frame for frame in reversed(place) if "transmamba/" in frame.filename), place[-1])
        return f"{name}{' (first entry)' if inside else ''} {how}: {type(error).__name__}: {error} [{ours.name}]"
    return None


def try_valid(make: Make, seed: int, layout: str, scale: float) -> str | None:
    """Check that valid arguments give finite numbers, the same ones for any content of fresh memory."""
    results = []
    try:
        for how in (LAYOUTS["as it is"], LAYOUTS[layout]):
            torch.manual_seed(seed)
            call = make(Sizes(seed, scale))
            then = None if call.then is None else _laid(call.then, how)
            results.append(list(tensors(run(Call(call.function, _laid(call.arguments, how), then)))))
        for one, other in zip(*results, strict=True):
            if one.is_floating_point() and not bool(one.isfinite().all()):
                return f"valid, {layout}, scale {scale}: not finite"
            torch.testing.assert_close(one, other, atol=1e-3 * max(scale, 1.0), rtol=1e-3)
    except Exception as error:
        return f"valid, {layout}, scale {scale}: {type(error).__name__}: {error}"
    return None


def _laid(given: dict[str, Any], how: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {n: how(v) if isinstance(v, Tensor) and v.dim() else v for n, v in given.items()}


def fuzz(name: str, rounds: int, share: float, seed: int) -> tuple[int, dict[str, str]]:
    """Count the calls tried, and failures by kind (numbers left out)."""
    make, failures, tried = EXAMPLES[name], {}, 0
    chance = random.Random(seed + zlib.crc32(name.encode()))
    for _ in range(rounds):
        sizes = chance.randrange(2**31)
        attempts = [(try_spoiled, (change,)) for change in changes(make, sizes)]
        attempts += [(try_valid, (layout, scale)) for layout in LAYOUTS for scale in (1.0, 0.0, 1e-3, 100.0)]
        for attempt, arguments in attempts:
            if chance.random() < share:
                faulthandler.dump_traceback_later(LIMIT, exit=True)
                problem = attempt(make, sizes, *arguments)
                tried += 1
                if problem:
                    failures.setdefault(re.sub(r"-?\d+(\.\d+)?", "#", problem)[:150], f"{problem} (sizes {sizes})")
    faulthandler.cancel_dump_traceback_later()
    return tried, failures


def main() -> None:
    """Run the command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prefix", help="ops, nn, models, distill, transfer, or one name such as ops.multi_scan")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    total = failed = 0
    start = time.monotonic()
    for name in EXAMPLES:
        if f"{name}.".startswith(f"{options.prefix}."):
            print(name, file=sys.stderr, flush=True)  # the last line names the example that ended the program
            tried, failures = fuzz(name, options.rounds, options.share, options.seed)
            total, failed = total + tried, failed + len(failures)
            for problem in failures.values():
                print(f"{name}: {problem}", flush=True)
    print(f"{total} calls in {time.monotonic() - start:.0f} s, {failed} kinds of failure")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
