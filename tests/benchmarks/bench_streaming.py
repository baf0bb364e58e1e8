"""The memory that inheriting from a LLaMA-7B takes: a checkpoint of its shapes, read tensor by tensor.

    python -m tests.benchmarks.bench_streaming [--scores axes] [--layers 32] [--folder /tmp]

The file is sparse (zeros that take no room on the disk), in bfloat16 like the published ones. Prints the sizes of
teacher, student and largest teacher tensor, and the largest resident memory above the student while `subclone` ran:
with scores by axis name, or with `--scores magnitude`, a function of each tensor that makes another tensor of its size.
Linux only.
"""

import argparse
import json
import struct
import tempfile
import threading
import time
from pathlib import Path

import torch

from transmamba.models import MambaLM
from transmamba.transfer import magnitude_importance, open_safetensors, subclone

DIM, HIDDEN, VOCAB = 4096, 11008, 32000


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Return LLaMA-7B's tensors by their names."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, DIM), "lm_head.weight": (VOCAB, DIM)}
    for i in range(layers):
        block = f"model.layers.{i}."
        found |= {f"{block}self_attn.{name}_proj.weight": (DIM, DIM) for name in "qkvo"}
        found |= {f"{block}mlp.{name}_proj.weight": (HIDDEN, DIM) for name in ("gate", "up")}
        found |= {f"{block}mlp.down_proj.weight": (DIM, HIDDEN)}
        found |= {f"{block}{name}_layernorm.weight": (DIM,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (DIM,)}


def write(path: Path, layers: int) -> int:
    """Write a safetensors file of zeros; return its size in bytes."""
    header, start = {}, 0
    for name, shape in shapes(layers).items():
        end = start + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
    return start


def resident() -> int:
    """Count the bytes of this process in memory, mapped files included."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile", "RssShmem")) * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--scores", choices=("axes", "magnitude"), default="axes")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.bfloat16)
    student = MambaLM(VOCAB, 1024, depth=arguments.layers, d_intermediate=2816)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(1.0)  # memory that nobody wrote is not resident
    by_axis = {"residual": torch.rand(DIM)} | {f"hidden.{i}": torch.rand(HIDDEN) for i in range(arguments.layers)}
    peak, done, before = 0, threading.Event(), resident()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        size = write(Path(folder) / "model.safetensors", arguments.layers)
        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.process_time()
        scores = by_axis if arguments.scores == "axes" else magnitude_importance
        report = subclone(open_safetensors(folder), student, scores)
        seconds = time.process_time() - start
        done.set()
        watcher.join()
    mib, largest = 2**20, max(2 * torch.Size(shape).numel() for shape in shapes(1).values())
    own = sum(2 * parameter.numel() for parameter in student.parameters())
    print(f"teacher {size / mib:.0f} MiB, student {own / mib:.0f}, largest teacher tensor {largest / mib:.0f} MiB")
    print(
        f"above the student {(peak - before) / mib:.0f} MiB; {seconds:.0f} s of processor time; {report.fraction:.0%}"
    )


if __name__ == "__main__":
    main()
