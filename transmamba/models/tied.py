"""A head that is the embedding's matrix, as other libraries ask for it."""

import warnings
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

_ADVICE = (
    "embedding and head are one matrix: merging an adapter of either changes both, and gives another model. "
    "Call untie_head() before adapting, or leave both out of target_modules"
)


@dataclass
class LanguageModelConfig:
    """The entries of `model.config` that peft and transformers look for."""

    model_type: str
    hidden_size: int
    vocab_size: int
    tie_word_embeddings: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the entries by their names."""
        return dict(vars(self))


class TiedHead:
    """Mixin for a model with `embedding` and `head`, which are one matrix if `tied`."""

    tied: bool

    @property
    def config(self) -> LanguageModelConfig:
        """Facts by the names of transformers; warns if an adapter wraps one of two layers that are one matrix."""
        if self.tied and any(hasattr(layer, "base_layer") for layer in (self._part("head"), self._part("embedding"))):
            warnings.warn(_ADVICE, stacklevel=2)
        rows, width = self._part("embedding").weight.shape
        return LanguageModelConfig("transmamba", width, rows, self.tied)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self._part("embedding")

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self._part("head")

    def untie_head(self) -> None:
        """Give the head a matrix of its own, with the same numbers; nothing happens if it has one."""
        if not self.tied:
            return
        head = self._part("head")
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        self.tied = False
        _note_untied(cast(Any, self).recipe)

    def _part(self, name: str) -> Any:
        return getattr(self, name)


def _note_untied(recipe: dict[str, Any] | None) -> None:
    """Update the recipe, so that a rebuilt model has two matrices."""
    if recipe is None:
        return
    if "family" in recipe:
        recipe["config"] = {**recipe["config"], "tie_embeddings": False}
    elif recipe["build"] == "from_hf":
        recipe["arguments"] = {"config": {**recipe["arguments"]["config"], "tie_word_embeddings": False}}
    else:
        recipe["arguments"] = {**recipe["arguments"], "tied": False}
