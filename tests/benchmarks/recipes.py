"""The rows of the accuracy benchmark: ways to transfer, as data."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """One way to train a student. The task's weight is 1; the others are relative to it.

    Attributes:
        inherit: start from the teacher's important neurons.
        solved: then solve the readouts of mixers and MLPs in closed form, on the student's images.
        features: weight of feature distillation; 1 is alpha = 0.5 of the paper, 1 / 9 alpha = 0.9.
        logits: weight of logits distillation.
        temperature: of the logits.
        feature: the student's feature: the residual "stream" after each block, its "mixer" output, the "directions" of
            the mixer apart, or the block's input plus each direction ("stream_directions").
        last: the last layer alone.
        teacher_layers: the teacher layer that all student layers meet, or the one of their depth.
        centred: take mean and deviation over the data off each channel of the teacher.
        schedule: how the weights change during a run, see `weights_at`.
        skip: calibrators start as the padding; without it at random.
        pad: where the calibrator puts the student's channels: where inheritance "kept" them, or "right" aligned zeros.
        calibrator_rate: learning rate of the calibrators, relative to the student's.
        stride: distil every stride-th layer.
        tokens: distil this many random tokens.
    """

    inherit: bool = False
    solved: bool = False
    features: float = 0.0
    logits: float = 0.0
    temperature: float = 2.0
    feature: Literal["stream", "mixer", "directions", "stream_directions"] = "stream"
    last: bool = False
    weighting: str = "ratio"
    tau: float = 1.0
    teacher_layers: Literal["last", "before last", "matched"] = "last"
    centred: bool = False
    schedule: Literal["constant", "decay", "early", "first"] = "constant"
    mode: str = "pad_mlp"
    hidden: int | None = None
    skip: bool = True
    pad: Literal["kept", "right"] = "kept"
    calibrator_rate: float = 1.0
    stride: int = 1
    tokens: int | None = None
    rate: float = 4e-3


def weights_at(schedule: str, progress: float) -> tuple[float, float]:
    """Return the factors of the task and of distillation after a share `progress` of the run."""
    if schedule == "decay":
        return 1.0, 1.0 - progress
    if schedule == "early":
        return 1.0, float(progress < 0.3)
    if schedule == "first":
        return (0.0, 1.0) if progress < 0.3 else (1.0, 0.0)
    return 1.0, 1.0


SCRATCH = Recipe()
LOGITS = Recipe(logits=1.0)
HOT = Recipe(logits=1.0, temperature=8.0)
ADAPTIVE = Recipe(features=1.0)
BIDIRECTIONAL = Recipe(features=1.0, feature="directions")
SUB = Recipe(inherit=True)

# the single changes that help, together
TUNED: dict[str, object] = {"feature": "stream_directions", "teacher_layers": "matched", "centred": True}

ROWS = {
    "from scratch": SCRATCH,
    "last feature": replace(ADAPTIVE, last=True),
    "logits": LOGITS,
    "logits, temperature 8": HOT,
    "uniform": replace(ADAPTIVE, weighting="uniform"),
    "adaptive, ratio": ADAPTIVE,
    "adaptive, neg_cos": replace(ADAPTIVE, weighting="neg_cos"),
    "adaptive, ratio_raw": replace(ADAPTIVE, weighting="ratio_raw"),
    "adaptive, linear": replace(ADAPTIVE, weighting="linear"),
    "adaptive + bidirectional": BIDIRECTIONAL,
    "adaptive + bidirectional + logits": replace(BIDIRECTIONAL, logits=1.0),
    "tuned": replace(ADAPTIVE, **TUNED),
    "tuned + logits": replace(ADAPTIVE, logits=1.0, **TUNED),
    "tuned + logits, temperature 8": replace(HOT, features=1.0, **TUNED),
    "subclone": SUB,
    "subclone, closed form": replace(SUB, solved=True),
    "subclone, closed form + logits, temperature 8": replace(HOT, inherit=True, solved=True),
    "subclone + logits": replace(SUB, logits=1.0),
    "subclone + logits, temperature 8": replace(HOT, inherit=True),
    "subclone + adaptive": replace(ADAPTIVE, inherit=True),
    "subclone + adaptive + bidirectional": replace(BIDIRECTIONAL, inherit=True),
    "subclone + adaptive + bidirectional + logits": replace(BIDIRECTIONAL, inherit=True, logits=1.0),
    "subclone + tuned": replace(ADAPTIVE, inherit=True, **TUNED),
    "subclone + tuned + logits": replace(ADAPTIVE, inherit=True, logits=1.0, **TUNED),
    "subclone + tuned + logits, temperature 8": replace(HOT, inherit=True, features=1.0, **TUNED),
}
CENTRED: dict[str, object] = {"centred": True, "teacher_layers": "matched"}
# one change at a time, from a constant weight of 1 and the stream of every layer towards the last teacher layer
CHANGES: dict[str, dict[str, object]] = {
    "as it is": {},
    "weight 1/9": {"features": 1 / 9},
    "weight 3": {"features": 3.0},
    "weight decays to 0": {"schedule": "decay"},
    "first 30 % of the run": {"schedule": "early"},
    "alone for 30 %, then task": {"schedule": "first"},
    "pad right": {"pad": "right"},
    "pad only": {"mode": "pad"},
    "bottleneck": {"hidden": 32},
    "random start": {"skip": False},
    "calibrator rate / 10": {"calibrator_rate": 0.1},
    "calibrator rate x 3": {"calibrator_rate": 3.0},
    "mixer output": {"feature": "mixer"},
    "directions": {"feature": "directions"},
    "input + directions": {"feature": "stream_directions"},
    "tau 0.2": {"tau": 0.2},
    "tau 5": {"tau": 5.0},
    "uniform": {"weighting": "uniform"},
    "last layer": {"last": True},
    "every 2nd layer": {"stride": 2},
    "1/4 of tokens": {"tokens": 2},
    "matched depth": {"teacher_layers": "matched"},
    "before last": {"teacher_layers": "before last"},
    "centred": {"centred": True},
    "centred, matched": CENTRED,
    "centred, before last": {"centred": True, "teacher_layers": "before last"},
    "centred, matched, weight 3": CENTRED | {"features": 3.0},
    "centred, matched, decays": CENTRED | {"schedule": "decay"},
    "centred, matched, bottleneck, every 2nd layer": CENTRED | {"hidden": 32, "stride": 2},
    "tuned": TUNED,
    "tuned, weight 3": TUNED | {"features": 3.0},
    "tuned, weight 10": TUNED | {"features": 10.0},
    "tuned, decays": TUNED | {"schedule": "decay"},
    "tuned, logits": TUNED | {"logits": 1.0},
    "tuned, bottleneck": TUNED | {"hidden": 32},
    "tuned, every 2nd layer": TUNED | {"stride": 2},
    "tuned, 1/4 of tokens": TUNED | {"tokens": 2},
    "tuned, bottleneck, every 2nd layer": TUNED | {"hidden": 32, "stride": 2},
    "tuned, one linear layer": TUNED | {"mode": "pad_linear"},
    "tuned, random start": TUNED | {"skip": False},
    "tuned, pad only": TUNED | {"mode": "pad"},
    "tuned, uniform": TUNED | {"weighting": "uniform"},
    "logits": {"features": 0.0, "logits": 1.0},
    "logits, temperature 1": {"features": 0.0, "logits": 1.0, "temperature": 1.0},
    "logits, temperature 4": {"features": 0.0, "logits": 1.0, "temperature": 4.0},
    "logits, temperature 8": {"features": 0.0, "logits": 1.0, "temperature": 8.0},
    "logits, temperature 16": {"features": 0.0, "logits": 1.0, "temperature": 16.0},
    "logits, temperature 32": {"features": 0.0, "logits": 1.0, "temperature": 32.0},
    "logits, weight 3": {"features": 0.0, "logits": 3.0},
    "logits, centred, matched": {"logits": 1.0, "centred": True, "teacher_layers": "matched"},
}
TABLES = {
    "rows": ROWS,
    "near": {"task alone": SUB} | {name: replace(ADAPTIVE, inherit=True, **change) for name, change in CHANGES.items()},
    "far": {"task alone": SCRATCH} | {name: replace(ADAPTIVE, **change) for name, change in CHANGES.items()},
}
