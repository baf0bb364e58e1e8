"""Optimiser groups after a transfer: inherited parameters, new ones, and those without weight decay."""

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from transmamba._typing import typed

# a decay of these shrinks memory, step sizes or positions, not capacity
NO_DECAY = ("*A_log", "D", "*.D", "*dt_bias", "*pos_embed", "*temporal_pos_embedding", "*cls_token", "*dist_token")


@typed
def param_groups(
    student: nn.Module,
    inherited: Collection[str],
    *,
    lr: float,
    inherited_lr: float | None = None,
    weight_decay: float = 0.05,
) -> list[dict[str, Any]]:
    """Return the groups "inherited", "inherited_no_decay", "new" and "new_no_decay" for any torch optimiser.

    One-dimensional parameters, those in `NO_DECAY` and those that the model's `no_weight_decay()` names do not decay;
    its entries may be patterns, such as "*.mixer.log_decay". Frozen parameters are in no group, tied ones in one.

    Args:
        student: the model that was initialised.
        inherited: names of its inherited parameters: `report.inherited`.
        lr: learning rate of the new parameters.
        inherited_lr: learning rate of the inherited parameters; `lr` by default.
        weight_decay: decay of matrices.

    Raises:
        ValueError: a name is not the student's, or an entry of `no_weight_decay()` matches no parameter.

    Example:
        >>> groups = param_groups(nn.Linear(3, 2), {"weight"}, lr=1e-3, inherited_lr=1e-4)
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
        [('inherited', 0.0001, 0.05), ('new_no_decay', 0.001, 0.0)]
    """
    _refuse_unknown(student, inherited)
    spared = (*NO_DECAY, *_own_patterns(student))
    groups: dict[str, dict[str, Any]] = {}
    for origin, rate in (("inherited", lr if inherited_lr is None else inherited_lr), ("new", lr)):
        for suffix, decay in (("", weight_decay), ("_no_decay", 0.0)):
            groups[origin + suffix] = {"name": origin + suffix, "params": [], "lr": rate, "weight_decay": decay}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            still = parameter.dim() < 2 or _fits(name, spared)
            origin = "inherited" if name in inherited else "new"
            groups[origin + ("_no_decay" if still else "")]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


@typed
def freeze(student: nn.Module, names: Collection[str], *, frozen: bool = True) -> None:
    """Stop the named parameters from learning, or with `frozen=False` let them learn again.

    Args:
        student: the model.
        names: parameter names, such as `report.inherited`.
        frozen: which of the two.

    Raises:
        ValueError: a name is not the student's.
    """
    _refuse_unknown(student, names)
    for name, parameter in student.named_parameters():
        if name in names:
            parameter.requires_grad_(not frozen)


def _own_patterns(student: nn.Module) -> set[str]:
    """Return the entries of the model's `no_weight_decay()`, each of which has to match a parameter."""
    patterns = set(getattr(student, "no_weight_decay", set)())
    names = [name for name, _ in student.named_parameters(remove_duplicate=False)]
    for pattern in sorted(patterns):
        # models of timm name tokens that not all of them have
        if not any(fnmatchcase(name, pattern) for name in names) and not _fits(pattern, NO_DECAY):
            raise ValueError(
                f"no_weight_decay() of {type(student).__name__} names {pattern!r}, which matches no parameter: expected"
                f" whole names or patterns, such as {', '.join(names[:2])} or '*.{names[-1].rpartition('.')[2]}'"
            )
    return patterns


def _fits(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_unknown(student: nn.Module, names: Collection[str]) -> None:
    known = {name for name, _ in student.named_parameters(remove_duplicate=False)} | set(student.state_dict())
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(
            f"the student has no parameter {', '.join(unknown[:5])}: expected names such as"
            f" {', '.join(sorted(known)[:3])}"
        )
