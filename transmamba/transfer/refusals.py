"""Student tensors that are left alone, and the conditions under which a whole transfer is refused."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from transmamba.transfer.plan import Matches
from transmamba.transfer.source import Source
from transmamba.transfer.student import Student, placed_share
from transmamba.transfer.students import SSM_PARAMETERS

# of the tensors in a student's blocks, SSM parameters aside: below it only debris would be inherited
LEAST_SHARE = 0.5


def excluded_names(target: Mapping[str, Tensor], source: Source, exclude: Sequence[str] | None) -> dict[str, str]:
    """Return the student tensors to leave alone, with the pattern that names them."""
    if exclude is None:
        patterns: Sequence[str] = () if any(fnmatchcase(name, "*A_log") for name in source) else SSM_PARAMETERS
    else:
        patterns = exclude
        for pattern in patterns:
            if pattern not in SSM_PARAMETERS and not any(fnmatchcase(name, pattern) for name in target):
                raise ValueError(
                    f"exclude pattern {pattern!r} matches no student tensor: expected names such as"
                    f" {', '.join(list(target)[:4])}"
                )
    why = "SSM parameter" if exclude is None else "excluded"
    hits = ((name, next((p for p in patterns if fnmatchcase(name, p)), None)) for name in target)
    return {name: f"{why}, {pattern}" for name, pattern in hits if pattern is not None}


def refuse_unresolved(found: Matches, target: Mapping[str, Tensor], source: Source) -> None:
    """Raise ValueError for unmatched entries of a user's plan; our own tables name more tensors than one model has."""
    if found.unused:
        raise ValueError(
            f"the plan names student tensors that do not exist: {', '.join(found.unused[:5])}; the student has"
            f" {', '.join(list(target)[:5])}, ..."
        )
    if found.absent:
        name, reason = next(iter(found.absent.items()))
        raise ValueError(f"the plan for {name}: {reason}; it has {', '.join(list(source)[:5])}, ...")


def refuse_debris(
    student: Student,
    source: Source,
    written: set[str],
    skipped: Mapping[str, str],
    left: Mapping[str, str],
    beyond: Mapping[str, str],
) -> None:
    """Raise ValueError if hardly a tensor of the student's blocks has a counterpart in the teacher."""
    share = placed_share(student, left, written, beyond)
    if share >= LEAST_SHARE and written:
        return
    reasons = {name: reason for name, reason in skipped.items() if name not in left}
    missing = [f"{name}: {reason}" for name, reason in reasons.items()]
    others = [name for name in student.tensors if name not in {*written, *skipped}]
    missing += [f"{name}: the table has no entry for it" for name in others]
    family = source.translated.family if source.translated is not None else "plan"
    raise ValueError(
        f"only {share:.0%} of the tensors in the student's blocks have a counterpart in the teacher ({family}):"
        f" {'; '.join(missing[:4])}; ... Build a student whose blocks are like the teacher's, or give partial=True"
    )
