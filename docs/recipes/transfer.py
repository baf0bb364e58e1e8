"""From an image Transformer into a vision Mamba, the paper's way: `torchrun docs/recipes/transfer.py --help`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import images
import loop
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba import AdaptiveLayerDistill, TransMambaLoss, models, subclone, transfer
from transmamba.distill import LayerCalibrators, MultiDirectionalDistill, drop_tokens, ends_process, resize_tokens
from transmamba.models.vmamba import ORDERS
from transmamba.ops import permute_tokens, scan_orders

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


def known_teacher(weights: Path, config: Path) -> models.ViT:
    """A Transformer of any family that `models.from_transformer` knows, by its tensors and its `config.json`."""
    state: Any = transfer.open_safetensors(weights) if weights.suffix == ".safetensors" else read(weights)
    teacher = models.from_transformer(state, config=json.loads(config.read_text()))
    if not isinstance(teacher, models.ViT):
        raise ValueError(f"{config} describes a {type(teacher).__name__}: expected an image Transformer")
    return teacher


def solve_readouts(
    teacher: models.ViT, student: nn.Module, kept: Sequence[int] | None, args: argparse.Namespace
) -> transfer.FitReport:
    """Solve the output projections of mixers and MLPs on the first batches of `--fit` images, without labels."""
    if not isinstance(student, models.VisionMamba):
        raise ValueError(f"--fit needs a student of one token per patch, such as vision_tiny, got {args.student}")
    loader = images.make_loader(args.data, args.size, args.batch, train=True, rank=0, world=1, workers=args.workers)
    batches = [x for _, (x, _) in zip(range(-(-args.fit // args.batch)), loader, strict=False)]
    width = teacher.norm.weight.numel()
    projection = None if kept is None else torch.eye(width)[list(kept)]
    return transfer.fit_layers(
        teacher, student, batches, projection=projection, tokens=lambda x: x[:, teacher.prefix :], mlp=True
    )


def inherit(
    teacher: nn.Module, student: nn.Module, before: Path | None, layer_map: Any = None
) -> transfer.SubcloneReport:
    """Keep what moved least while the teacher was fine-tuned (the paper); without `before`, what is largest."""
    importance: Any = transfer.magnitude_importance
    if before is not None:
        old = {name: value for name, value in read(before).items() if not name.startswith("head")}
        importance = transfer.stability_importance(old, teacher)
    # a VMamba may be deeper than its teacher, whose first layers would not reach its last stage
    layer_map = layer_map or ("uniform" if isinstance(student, models.VMamba) else "early")
    return subclone(teacher, student, importance, layer_map=layer_map)


def natural_shares(features: models.Features, target: Sequence[int]) -> list[list[Tensor]]:
    """By direction, every layer's share in natural order, without class tokens, on the teacher's grid."""
    directions = []
    for number, layers in enumerate(features.directions):
        shares = []
        for layer, x in enumerate(layers):
            grid = features.grids[layer] if features.grids else features.grid
            orders = scan_orders(ORDERS, grid, x.device) if features.grids else features.orders
            x = permute_tokens(x, orders[number].undo())
            shares.append(resize_tokens(drop_tokens(x, features.extra) if features.extra else x, grid, target))
        directions.append(shares)
    return directions


class Transfer(nn.Module):
    """Student, calibrators and losses: what is trained, as one module for DDP."""

    def __init__(self, student: nn.Module, teacher: models.ViT, pad: Any, args: argparse.Namespace) -> None:
        super().__init__()
        self.model, self.grid = student, teacher.grid
        with torch.no_grad():
            probe = student.eval().forward_features(torch.zeros(1, 3, args.size, args.size), directions=True)
        dims = [layer.shape[-1] for layer in probe.directions[0]]
        width = teacher.norm.weight.numel()
        self.bridges = nn.ModuleList(LayerCalibrators(dims, width, pad=pad) for _ in probe.directions)
        # for a cosine per token, natural order on both sides gives the value of scan order on both sides
        self.distill = MultiDirectionalDistill(AdaptiveLayerDistill(tau=args.tau), order="raster")
        self.total = TransMambaLoss.v1(args.alpha)

    def forward(self, x: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        """Eq. 11, from images, their (soft) labels and the teacher's last feature."""
        features = self.model.forward_features(x, directions=True)
        read_out = features.last[:, list(features.extra)] if features.extra else features.last
        task = F.cross_entropy(self.model.head(read_out.mean(1)), labels)
        shares = natural_shares(features, self.grid)
        student = {str(k): bridge(layers) for k, (bridge, layers) in enumerate(zip(self.bridges, shares, strict=True))}
        return self.total(task, self.distill(student, target))


def main(given: Sequence[str] | None = None) -> dict[str, float]:
    """Read the command line and train."""
    parser = loop.arguments("Transfer a fine-tuned DeiT into a vision Mamba.")
    parser.add_argument("--teacher", default="vit_small", help="vit_tiny, vit_small or vit_base")
    parser.add_argument("--weights", type=Path, required=True, help="the teacher, fine-tuned on the same classes")
    parser.add_argument("--config", type=Path, help="config.json of the teacher, for any family of from_transformer")
    parser.add_argument(
        "--fit", type=int, default=0, help="ours, not the paper's: images to solve the readouts on before training"
    )
    parser.add_argument("--before", type=Path, help="the teacher before fine-tuning, for the paper's importance")
    parser.add_argument(
        "--student", default="vision_tiny", help="vision_tiny, plain_mamba_tiny, vim_tiny, vmamba_v0_tiny, ..."
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the task, Eq. 11; the paper has no value")
    parser.add_argument(
        "--tau", type=float, default=1.0, help="temperature of the layer weights; the paper has no value"
    )
    args = parser.parse_args(given)
    torch.manual_seed(args.seed)
    classes = len(images.ClassFolders(args.data / "train", images.to_tensor).classes)
    if args.config is not None:
        teacher: Any = known_teacher(args.weights, args.config)
    else:
        teacher = build(args.teacher, classes, args)
        teacher.load_state_dict(read(args.weights))
    teacher.eval().requires_grad_(False)
    student = build(args.student, classes, args)
    report = inherit(teacher, student, args.before, layer_map="uniform" if args.fit else None)
    if args.fit:
        print(solve_readouts(teacher, student, report.kept.get("residual"), args))
    module = Transfer(student, teacher, report.kept.get("residual", "right"), args)
    groups = transfer.param_groups(student, report.inherited, lr=args.lr, weight_decay=0.05)
    groups.append({"name": "bridges", "params": list(module.bridges.parameters()), "weight_decay": 0.05})

    def prepare(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, soft = images.mix(x, labels, classes)
        with torch.no_grad():
            return x, soft, drop_tokens(teacher.to(x.device).forward_features(x).last, teacher.prefix)

    return loop.Run(module, student, groups, prepare, args).fit()


if __name__ == "__main__":
    ends_process(main)()
