"""Fine-tune a teacher, or train a student from scratch: `torchrun docs/recipes/finetune.py --help`."""

from collections.abc import Sequence
from pathlib import Path

import images
import loop
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transfer import build, read

from transmamba.distill import ends_process
from transmamba.transfer import param_groups


class Task(nn.Module):
    """A model and cross-entropy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        return F.cross_entropy(self.model(x), labels)


def main(given: Sequence[str] | None = None) -> dict[str, float]:
    """Read the command line and train."""
    parser = loop.arguments("Train a model on class folders of images.")
    parser.add_argument("--model", default="vit_small", help="as in transfer.py, teachers and students")
    parser.add_argument("--weights", type=Path, help="start from this checkpoint; a head of other classes is new")
    args = parser.parse_args(given)
    torch.manual_seed(args.seed)
    classes = len(images.ClassFolders(args.data / "train", images.to_tensor).classes)
    model = build(args.model, classes, args)
    if args.weights is not None:
        own = model.state_dict()
        state = {name: value for name, value in read(args.weights).items() if value.shape == own[name].shape}
        missing = model.load_state_dict(state, strict=False).missing_keys
        if any(not name.startswith("head") for name in missing):
            raise ValueError(
                f"{args.weights} does not fit {args.model}: {', '.join(missing[:5])} are missing or of another shape"
            )
    groups = param_groups(model, set(), lr=args.lr, weight_decay=0.05)
    return loop.Run(Task(model), model, groups, lambda x, y: images.mix(x, y, classes), args).fit()


if __name__ == "__main__":
    ends_process(main)()
