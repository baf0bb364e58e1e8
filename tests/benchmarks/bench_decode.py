"""Tokens per second of greedy decoding: a 130m-shaped Mamba here and in `transformers`, with the same weights.

python -m tests.benchmarks.bench_decode --tokens 32 --repeats 5 --threads 1
"""

import argparse
import statistics
import time

import torch
import transformers

from transmamba.models import from_hf


def twins(depth: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return the model of `transformers`, random weights, and ours with the same."""
    config = transformers.MambaConfig(
        vocab_size=50280, hidden_size=768, state_size=16, num_hidden_layers=depth, eos_token_id=None, pad_token_id=0
    )
    theirs = transformers.MambaForCausalLM(config).eval()
    return theirs, from_hf(config.to_dict(), theirs.state_dict()).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32, help="new tokens per run")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    theirs, ours = twins(options.depth)
    runs = {
        "transmamba": lambda ids: ours.generate(ids, options.tokens),
        "transformers": lambda ids: theirs.generate(ids, max_new_tokens=options.tokens, do_sample=False),
    }
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {options.threads} threads")
    print("batch  who            tokens/s (wall)   tokens/s (CPU time)   ratio of CPU time, median (min-max)")
    for batch in options.batch:
        ids = torch.randint(50277, (batch, options.prompt))
        texts = [run(ids[:, :5]) for run in runs.values()]
        assert torch.equal(*texts), "the texts differ"
        seconds: dict[str, list[tuple[float, float]]] = {who: [] for who in runs}
        for _ in range(options.repeats):
            for who, run in runs.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run(ids)
                seconds[who].append((time.perf_counter() - wall, time.process_time() - cpu))
        pairs = zip(seconds["transformers"], seconds["transmamba"], strict=True)
        ratios = sorted(theirs[1] / ours[1] for theirs, ours in pairs)
        for who, times in seconds.items():
            rates = [batch * options.tokens / statistics.median(column) for column in zip(*times, strict=True)]
            note = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})" if who == "transmamba" else ""
            print(f"{batch:5}  {who:13}  {rates[0]:15.1f}   {rates[1]:19.1f}   {note}")


if __name__ == "__main__":
    main()
