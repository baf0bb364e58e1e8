"""How the docstrings are read."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """A section "Example:" with prompts is code, as "Examples:" would be."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
