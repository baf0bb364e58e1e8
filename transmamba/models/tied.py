"""A head that is the embedding's matrix, as other libraries ask for it."""

import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

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
    """Mixin for a model with `embedding` and `head`, which are one matrix if `tied`.

    They stay one wherever modules are moved, emptied or loaded, and under `init_empty_weights` of accelerate.
    """

    tied: bool

    def tie_weights(self) -> None:
        """Make the embedding's matrix the head's, if the model is `tied`; accelerate and transformers call this."""
        if self.tied:
            # not by assignment, in whose place accelerate makes a copy for the meta device
            self._part("head")._parameters["weight"] = self._part("embedding").weight
            model = cast(nn.Module, self)
            if _tie_again not in model._load_state_dict_post_hooks.values():
                model.register_load_state_dict_post_hook(_tie_again)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # to_empty, and moves off the meta device, make a new parameter for each name
        tied = self._is_tied()
        moved = super()._apply(fn, recurse)  # type: ignore[misc]
        if tied and not self._is_tied():
            self.tie_weights()
        return moved

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        pair = [state_dict.get(f"{prefix}{part}.weight") for part in ("embedding", "head")]
        plain: list[Any] = [x for x in pair if type(x) in (Tensor, nn.Parameter)]
        plain = [x for x in plain if not x.is_meta]
        if self.tied and len(plain) == 2 and plain[0].shape == plain[1].shape and not torch.equal(*plain):
            raise ValueError(
                "the state has two different matrices as embedding and head, the model has one: call untie_head() "
                "first, or build the model with tied=False"
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)  # type: ignore[misc]

    def _is_tied(self) -> bool:
        weights = [getattr(self._part(part), "weight", None) for part in ("embedding", "head")]
        return self.tied and weights[0] is weights[1]

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
        _note_untied(cast(Any, self).build_config)

    def _part(self, name: str) -> Any:
        return getattr(self, name)


def _tie_again(model: Any, incompatible_keys: Any) -> None:
    """Tie embedding and head again where equal, because with `assign` every name got a tensor of its own."""
    embedding, head = (
        model._part(part).__dict__.get("_parameters", {}).get("weight") for part in ("embedding", "head")
    )
    if not model.tied or embedding is None or head is None or embedding is head or embedding.shape != head.shape:
        return
    if embedding.is_meta and not head.is_meta:  # only the head was in the state
        model._part("embedding")._parameters["weight"] = head
    model.tie_weights()


def _note_untied(saved: dict[str, Any] | None) -> None:
    """Update the saved configuration, so that a rebuilt model has two matrices."""
    if saved is None:
        return
    if "family" in saved:
        saved["config"] = {**saved["config"], "tie_embeddings": False}
    elif saved["build"] == "from_hf":
        saved["arguments"] = {"config": {**saved["arguments"]["config"], "tie_word_embeddings": False}}
    else:
        saved["arguments"] = {**saved["arguments"], "tied": False}
