"""From an image Transformer into a vision Mamba, with the settings of the paper: `docs/recipes/transfer.py --help`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import images
import loop
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba import AdaptiveLayerDistill, TransMambaLoss, models, subclone, transfer
from transmamba.distill import DirectionBridge, MultiDirectionalDistill, Tokens, ends_process

WIDTHS = {"tiny": 192, "small": 384, "base": 768}


def build(name: str, classes: int, args: argparse.Namespace) -> nn.Module:
    """A model by name: `vision_*` have the blocks of the paper's student, the others are the library's."""
    options: dict[str, Any] = {"img_size": args.size, "patch_size": args.patch, "num_classes": classes}
    if name.startswith("vision_"):
        return models.VisionMamba(dim=WIDTHS[name.removeprefix("vision_")], orders=models.SNAKES, **options)
    if name.startswith("vmamba"):
        options = {"num_classes": classes}
    return getattr(models, name)(**options)


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint of timm, of DeiT's repository, or of `finetune.py`."""
    saved = torch.load(file, map_location="cpu", weights_only=True)
    saved = saved.get("module", saved.get("model", saved))
    return {name.removeprefix("model."): value for name, value in saved.items()}


def read_teacher(args: argparse.Namespace, classes: int) -> models.ViT:
    """A checkpoint of the ViT that `--teacher` names; or, from a folder of transformers, whatever it holds."""
    if args.weights.is_dir():
        teacher: Any = models.from_transformer(transfer.open_safetensors(args.weights), img_size=args.size)
        return teacher
    vit = build(args.teacher, classes, args)
    vit.load_state_dict(read(args.weights))
    return vit


def solve(
    teacher: models.ViT, student: nn.Module, kept: Mapping[str, Sequence[int]], data: Any, count: int
) -> transfer.FitReport:
    """The closed-form start: solve the student's readouts against the kept part of the teacher's stream."""
    picked = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count].tolist()
    batches = [torch.stack([data[i][0] for i in picked[start : start + 64]]) for start in range(0, len(picked), 64)]
    width = teacher.patch_embed.proj.out_channels

    def rows(name: str) -> Tensor:
        return torch.eye(width)[list(kept.get(name, range(width)))]

    if isinstance(student, models.VMamba):
        projections = [rows(f"residual.{stage}") for stage in range(len(student.stages))]
        return transfer.fit_stages(teacher, student, batches, projections=projections, progress=False)
    projection = rows("residual") if "residual" in kept else None
    return transfer.fit_layers(teacher, student, batches, projection=projection, progress=False)


def inherit(
    teacher: nn.Module, student: nn.Module, before: Path | None, closed_form: int = 0
) -> transfer.SubcloneReport:
    """Keep what moved least while the teacher was fine-tuned (the paper); without `before`, what is largest."""
    importance: Any = transfer.magnitude_importance
    if before is not None:
        old = {name: value for name, value in read(before).items() if not name.startswith("head")}
        importance = transfer.stability_importance(old, teacher)
    # a solved student follows the teacher to its end
    return subclone(teacher, student, importance, layer_map="uniform" if closed_form else None)


class Transfer(nn.Module):
    """Student, calibrators and losses: what is trained, as one module for DDP."""

    def __init__(self, student: nn.Module, teacher: models.ViT, pad: Any, args: argparse.Namespace) -> None:
        super().__init__()
        self.model, self.grid = student, teacher.grid
        with torch.no_grad():
            probe = student.eval().forward_features(torch.zeros(1, 3, args.size, args.size), directions=True)
            target = teacher.forward_features(torch.zeros(1, 3, args.size, args.size))
        self.bridge = DirectionBridge(probe, target, pad=pad)
        # for a cosine per token, natural order on both sides gives the value of scan order on both sides
        self.distill = MultiDirectionalDistill(AdaptiveLayerDistill(tau=args.tau), order="raster")
        self.total = TransMambaLoss.v1(args.alpha)

    def forward(self, x: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        """Eq. 11, from images, their (soft) labels and the teacher's last feature."""
        features = self.model.forward_features(x, directions=True)
        task = F.cross_entropy(self.model.forward_head(features), labels)
        sides = self.bridge(features, Tokens(target, self.grid))
        return self.total(task, self.distill(sides.student, sides.teacher))


def main(given: Sequence[str] | None = None) -> dict[str, float]:
    """Read the command line and train."""
    parser = loop.arguments("Transfer a fine-tuned DeiT into a vision Mamba.")
    parser.add_argument("--teacher", default="vit_small", help="vit_tiny, vit_small or vit_base")
    parser.add_argument(
        "--weights", type=Path, required=True,
        help="checkpoint of the teacher, fine-tuned on the same classes; or folder of any image model of transformers",
    )  # fmt: skip
    parser.add_argument("--before", type=Path, help="the teacher before fine-tuning, for the paper's importance")
    parser.add_argument(
        "--student", default="vision_tiny", help="vision_tiny, plain_mamba_tiny, vim_tiny, vmamba_v0_tiny, ..."
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the task, Eq. 11; the paper has no value")
    parser.add_argument(
        "--tau", type=float, default=1.0, help="temperature of the layer weights; the paper has no value"
    )
    parser.add_argument(
        "--closed-form", type=int, default=0, metavar="N", help="solve the readouts on N training images, no labels"
    )
    args = parser.parse_args(given)
    torch.manual_seed(args.seed)
    data = images.ClassFolders(args.data / "train", images.plain_val(args.size))
    classes = len(data.classes)
    teacher = read_teacher(args, classes)
    teacher.eval().requires_grad_(False)
    student = build(args.student, classes, args)
    report = inherit(teacher, student, args.before, args.closed_form)
    if args.closed_form:
        print(solve(teacher, student, report.kept, data, args.closed_form))
    module = Transfer(student, teacher, report.pads(student), args)
    groups = transfer.param_groups(student, report.inherited, lr=args.lr, weight_decay=0.05)
    groups.append({"name": "bridges", "params": list(module.bridge.parameters()), "weight_decay": 0.05})

    def prepare(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, soft = images.mix(x, labels, classes)
        with torch.no_grad():
            return x, soft, teacher.to(x.device).forward_features(x).last[:, teacher.prefix :]

    return loop.Run(module, student, groups, prepare, args).fit()


if __name__ == "__main__":
    ends_process(main)()
