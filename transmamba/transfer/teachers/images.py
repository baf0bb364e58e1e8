"""Facts that configurations of image models in transformers state alike."""

from collections.abc import Mapping
from typing import Any

from transmamba.transfer.teachers.checkpoint import Checkpoint, Config
from transmamba.transfer.teachers.facts import read_activation
from transmamba.transfer.teachers.terms import Terms, affine
from transmamba.transfer.teachers.translated import square_grid


def image_facts(config: Config, *, eps: float, act: str, heads: int = 12) -> dict[str, Any]:
    """Return the common fields of `Architecture`: heads, eps, activation.

    Args:
        config: the teacher's configuration.
        eps: default of the configuration class.
        act: default of the configuration class.
        heads: default of the configuration class; not taken from a configuration that does not say its class.
    """
    return {
        "heads": config("num_attention_heads", default=heads if config.model_type else None, fact="heads"),
        # no public configuration has it, but the models read it where it is
        "head_dim": config("head_dim"),
        "eps": config("layer_norm_eps", default=eps, fact="eps"),
        "activation": read_activation(config, "hidden_act", default=act),
    }


def read_grid(
    checkpoint: Checkpoint, patch: int, rows: int | None, prefixes: tuple[int, ...], square: bool = False
) -> dict[str, Any]:
    """Return the fields `grid` and `unknown`: the rows and columns of patches.

    Args:
        checkpoint: the teacher.
        patch: side of a patch in pixels.
        rows: rows of the position table; None if there is none.
        prefixes: numbers of prefix tokens that the table may have rows for.
        square: the model takes its table for that of a square grid, whatever the image size, and resizes it.

    Raises:
        ValueError: the table is not that of the image size, or is resized at that size.
    """
    size = checkpoint.config("image_size")
    if size is None:
        grid = None if rows is None else square_grid(rows, prefixes)
        return {"grid": grid, "unknown": () if grid else ("grid",)}
    height, width = size if isinstance(size, list | tuple) else (size, size)
    grid = (height // patch, width // patch)
    if rows is not None and rows - grid[0] * grid[1] not in prefixes:
        raise ValueError(
            f"an image of {height} by {width} pixels has {grid[0] * grid[1]} patches of {patch}, but the position table"
            f" {rows} rows: the configuration belongs to another checkpoint"
        )
    if square and rows is not None and grid[0] != grid[1]:
        raise ValueError(
            f"a grid of {grid[0]} by {grid[1]} patches: expected a square one, because the model reads its position"
            " table as square"
        )
    return {"grid": grid}


def square_patch(checkpoint: Checkpoint, name: str) -> int:
    """Return the side of the patches that a convolution cuts.

    Raises:
        ValueError: they are not square.
    """
    height, width = checkpoint.shape(name)[-2:]
    if height != width:
        raise ValueError(f"patches of {height} by {width} pixels have no canonical form: expected square ones")
    return height


def all_affine(pairs: Mapping[str, str], canonical: str, name: str) -> Terms:
    """Return the terms of several linear layers or norms, from names below `canonical` to those below `name`."""
    terms: Terms = {}
    for ours, theirs in pairs.items():
        terms |= affine(canonical + ours, name + theirs)
    return terms
