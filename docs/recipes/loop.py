"""The training loop of both recipes: torchrun, bf16, EMA, cosine schedule, and a resume that continues exactly."""

import argparse
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader


def arguments(description: str) -> argparse.ArgumentParser:
    """What both recipes ask for; the defaults are the settings behind the paper's Table 2."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train/<class>/ and val/<class>/")
    parser.add_argument("out", type=Path, help="folder of the checkpoint; an interrupted run goes on from it")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--batch", type=int, default=256, help="images per process")
    parser.add_argument("--lr", type=float, default=5e-4, help="for 512 images in all processes; scaled linearly")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--patch", type=int, default=16, help="side of a patch in pixels")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def start() -> tuple[int, int, torch.device]:
    """Rank, number of processes and device, under torchrun or without it."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group()
    return rank, world, device


def learning_rate(step: int, per_epoch: int, epochs: int, peak: float) -> float:
    """Five epochs up from 1e-6, then a cosine down to 1e-5."""
    warm = min(5, epochs // 2) * per_epoch
    if step < warm:
        return 1e-6 + (peak - 1e-6) * step / warm
    low = min(1e-5, peak)
    return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * (step - warm) / max(epochs * per_epoch - warm, 1)))


def seed_all(*numbers: int) -> None:
    """One state of all generators per epoch and process, so that a resumed run draws what a straight one would."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader, device: torch.device) -> float:
    """Share of right answers over all processes (the sampler repeats a few images to make shares equal)."""
    model.eval()
    counts = torch.zeros(2, device=device)
    for x, labels in loader:
        hits = model(x.to(device)).argmax(-1) == labels.to(device)
        counts += torch.stack([hits.sum(), torch.tensor(len(labels), device=device)])
    if dist.is_initialized():
        dist.all_reduce(counts)
    return float(counts[0] / counts[1])


class Run:
    """What a run consists of, and what of it the checkpoint holds.

    Args:
        module: its forward takes what `prepare` makes of a batch, and gives the loss.
        model: gives logits; a part of `module`.
        groups: for the optimiser, from `transfer.param_groups`.
        prepare: images and labels -> arguments of `module`.
        args: from `arguments`.
    """

    def __init__(
        self,
        module: nn.Module,
        model: nn.Module,
        groups: list[dict[str, Any]],
        prepare: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        args: argparse.Namespace,
    ) -> None:
        self.rank, self.world, self.device = start()
        self.module, self.model, self.prepare, self.args = module.to(self.device), model, prepare, args
        self.parallel = DistributedDataParallel(module) if self.world > 1 else module
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr)
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99996), use_buffers=True)
        self.parts = {"module": module, "averaged": self.averaged, "optimizer": self.optimizer}
        self.file, self.epochs, self.scores = args.out / "last.pt", 0, {}
        args.out.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            saved = torch.load(self.file, map_location=self.device, weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
            self.epochs, self.scores = saved["epochs"], saved["scores"]

    def fit(self) -> dict[str, float]:
        """Train to the last epoch and return its scores; who calls ends the process group, see `ends_process`."""
        where = {"rank": self.rank, "world": self.world, "workers": self.args.workers}
        given = (self.args.data, self.args.size, self.args.batch)
        train, val = (images.make_loader(*given, train=part, **where) for part in (True, False))
        for epoch in range(self.epochs, self.args.epochs):
            seed_all(self.args.seed, epoch, self.rank)
            train.sampler.set_epoch(epoch)
            loss = self.train(train, epoch)
            raw, averaged = (accuracy(model, val, self.device) for model in (self.model, self.averaged))
            self.scores = {"loss": loss, "accuracy": raw, "averaged": averaged}
            if self.rank == 0:
                print(f"epoch {epoch + 1}", *(f"{k} {v:.4f}" for k, v in self.scores.items()), flush=True)
                self.save(epoch + 1)
        return self.scores

    def train(self, loader: DataLoader, epoch: int) -> float:
        """One pass over the images; the mean loss of this process."""
        self.module.train()
        peak, total = self.args.lr * self.args.batch * self.world / 512, torch.zeros((), device=self.device)
        for number, (x, labels) in enumerate(loader, start=epoch * len(loader)):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(number, len(loader), self.args.epochs, peak)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                loss = self.parallel(*self.prepare(x.to(self.device, non_blocking=True), labels.to(self.device)))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.averaged.update_parameters(self.model)
            total += loss.detach()
        return float(total) / len(loader)

    def save(self, epochs: int) -> None:
        """All that the next epoch needs, in one file that is never half written."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save({**states, "epochs": epochs, "scores": self.scores}, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)
