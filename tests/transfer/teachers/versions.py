"""Mark tests for the transformers whose types the lists hold; other versions know more types, or fewer."""

import pytest

transformers = pytest.importorskip("transformers")
COMPLETE = "5.24"

complete = pytest.mark.skipif(
    not transformers.__version__.startswith(f"{COMPLETE}."),
    reason=f"the lists of types are those of transformers {COMPLETE}, this is {transformers.__version__}",
)


def need(kind):
    """Skip where transformers has no such type."""
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no type {kind}")
