"""A family of teachers: the names and the form in which checkpoints store one kind of Transformer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.terms import Terms


@dataclass(frozen=True)
class Canonical:
    """A family's reading of one checkpoint.

    Attributes:
        terms: canonical name -> how to compute it; `{i}` is every layer.
        architecture: the facts that tensors do not hold.
        ignored: patterns of stored names outside the Transformer -> their purpose.
        differs: properties of the teacher that a canonical Transformer of this architecture cannot keep.
    """

    terms: Terms
    architecture: Architecture
    ignored: Mapping[str, str] = field(default_factory=dict)
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """One way in which checkpoints name and store a Transformer.

    Attributes:
        name: the value for `family=`.
        title: models it covers, for people.
        model_types: values of `config.model_type` that it covers.
        marker: a stored name that each of its base models has; the part before it is the prefix of a wrapping model.
        read: checkpoint -> its canonical form. A ValueError refuses the checkpoint, with the reason.
        older: (pattern, replacement) pairs from names of older versions to today's, applied without the prefix.
        older_markers: markers of older versions.
        defaults: values of the configuration class, for keys that a config.json may leave out.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    marker: str
    read: Callable[[Checkpoint], Canonical]
    older: tuple[tuple[str, str], ...] = ()
    older_markers: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
