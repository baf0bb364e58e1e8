"""The cost of the shape check: python tests/benchmarks/bench_typing.py

Each figure is the median of repeats in fresh processes that differ in TRANSMAMBA_CHECK alone, interleaved, in CPU time.
"""

import os
import statistics
import subprocess
import sys
import time

CASES = {
    "Mlp(8), one tensor in, one out": ("tm.nn.Mlp(8, 8)", "f(torch.zeros(2, 3, 8))", 2000),
    "multi_scan, five tensors in": (
        "tm.ops.multi_scan",
        "f(x, x[:, None], -torch.ones(1, 4, 2), x[:, None, :, :2], x[:, None, :, :2])",
        500,
    ),
    "VisionMamba, 24 blocks of width 32": (
        "tm.models.VisionMamba(16, 4, dim=32, depth=24, num_classes=2)",
        "f(torch.zeros(1, 3, 16, 16))",
        20,
    ),
}


def measure(setup: str, call: str, repeats: int) -> float:
    """Measure the microseconds of CPU time of one call."""
    import torch

    import transmamba as tm

    torch.set_num_threads(1)
    scope = {"torch": torch, "tm": tm, "x": torch.zeros(1, 3, 4)}
    with torch.no_grad():
        scope["f"] = eval(setup, scope)
        code = compile(call, "call", "eval")
        for _ in range(5):
            eval(code, scope)
        start = time.process_time()
        for _ in range(repeats):
            eval(code, scope)
    return (time.process_time() - start) / repeats * 1e6


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(*CASES[sys.argv[1]]))
        sys.exit()
    print("| call | unchecked | checked at the border | checked everywhere |\n|---|--:|--:|--:|")
    for name in CASES:
        times: dict[str, list[float]] = {"0": [], "1": [], "all": []}
        for _ in range(5):
            for check, found in times.items():
                command = [sys.executable, __file__, name]
                out = subprocess.run(command, env={**os.environ, "TRANSMAMBA_CHECK": check}, capture_output=True)
                found.append(float(out.stdout))
        print(f"| {name} | " + " | ".join(f"{statistics.median(v):.0f} us" for v in times.values()) + " |")
