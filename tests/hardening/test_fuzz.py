"""Every public constructor, forward and function under spoiled arguments; see fuzz.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hardening.examples import EXAMPLES, EXEMPT, PACKAGES

ROOT = Path(__file__).parents[2]


def test_every_public_name_has_an_example():
    """A new public name joins by a function in examples that calls it, or by a line of EXEMPT with the reason."""
    public = {
        f"{package}.{name}"
        for package, module in PACKAGES.items()
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value)
    }
    passing = {name for name in public if name.startswith("models.") and name not in EXEMPT and "_" in name}
    assert not public - EXAMPLES.keys() - EXEMPT.keys() - passing
    assert not EXEMPT.keys() & EXAMPLES.keys()


def fuzz(folder, package, *options, check="1"):
    # in a process of its own, because a kernel could end it, and in a folder of its own, because "x" may be a path; as
    # users run it, with checks at the border
    found = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "tests.hardening.fuzz", package, *options], capture_output=True, text=True, cwd=folder,
        timeout=3000, env={**os.environ, "TRANSMAMBA_CHECK": check, "PYTHONPATH": found},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-1500:]}"


@pytest.mark.parametrize("package", PACKAGES)
def test_spoiled_arguments_end_in_documented_errors(package, tmp_path):
    fuzz(tmp_path, package, "--share", "0.03")


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_every_change_of_every_argument(package, tmp_path):
    fuzz(tmp_path, package, "--rounds", "3", "--seed", "1")
