"""Names, signatures and state dicts change on purpose or not at all; and a user's file runs."""

import json

import pytest

from tests.contracts.snapshot import MODULE_KEYS, PUBLIC, module_keys, public
from tests.contracts.user_code import Student, scan

REMEDY = """
{changes}
If that is meant, run `python -m tests.contracts.snapshot`, commit the files that it writes, and tell users in
CHANGELOG.md how to change their code. A name that leaves is announced one minor release ahead."""


def difference(before, now):
    """List a line per name that left, came or changed."""
    lines = [f"gone: {name} {before[name]}" for name in before if name not in now]
    lines += [f"new: {name}" for name in now if name not in before]
    lines += [f"changed: {n}\n  {before[n]}\n  {now[n]}" for n in now if n in before and before[n] != now[n]]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("path", "build"), [(PUBLIC, public), (MODULE_KEYS, module_keys)], ids=["public", "module_keys"]
)
def test_public_names_signatures_and_state_dicts_are_frozen(path, build):
    changes = difference(json.loads(path.read_text()), build())
    assert not changes, REMEDY.format(changes=changes)


def test_a_difference_names_what_left_came_and_changed():
    assert difference({"a": "(x)", "b": "()"}, {"a": "(x, y)", "c": "()"}) == (
        "gone: b ()\nnew: c\nchanged: a\n  (x)\n  (x, y)"
    )


def test_a_users_file_runs():
    import torch

    assert Student(6)(torch.zeros(2, 3, 8, 8)).shape == (2, 4, 12)
    assert scan(torch.ones(1, 3, 6)).shape == (1, 3, 6)
