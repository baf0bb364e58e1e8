"""A teacher's features and logits on disk: computed once, read by every run of a student."""

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transmamba._typing import typed
from transmamba.distill.shards import Shards, checksum, round_to, write_shard

Key = tuple[int | str, int]
Stored = Literal["float16", "bfloat16", "float32"]
Compute = Callable[[list[Key]], tuple[Tensor, Mapping[str, Tensor]]]

VERSION = 1
FACTS = "store.json"


@typed
def fingerprint(teacher: nn.Module) -> str:
    """Return a hash of a model's parameters and buffers, names and numbers.

    Example:
        >>> len(fingerprint(nn.Linear(2, 3)))
        64
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FeatureStore:
    """A teacher's tensors by sample and augmentation, read from disk as they are needed.

    A key is a sample's name or number and the number of the view of it: 0 for the only one, or the number from which
    its random augmentation was drawn. Files are mapped into memory, so that a batch costs the reading of its own rows.
    The store may be given to the workers of a data loader.

    A stored number differs from the teacher's x by at most 2^-11 |x| + 2^-25 in float16, 2^-8 |x| + 2^-134 in bfloat16,
    0 in float32 (of a teacher in float32).

    Args:
        folder: the folder that `FeatureStore.write` wrote.
        teacher: the model, or its `fingerprint`, that the features have to be from.
        augmentation: a description of all steps that the student's images go through, which has to be the teacher's.

    Raises:
        ValueError: the store is of another teacher or other augmentations, is not finished, or is damaged.
        FileNotFoundError: there is no store.
        ImportError: safetensors is not installed.

    Example:
        >>> import tempfile
        >>> teacher, images = nn.Linear(2, 3), torch.randn(5, 2)
        >>> def compute(keys):
        ...     x = images[[sample for sample, _ in keys]]
        ...     return x, {"logits": teacher(x)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     FeatureStore.write(folder, [(i, 0) for i in range(5)], compute, teacher=teacher, augmentation="none")
        ...     store = FeatureStore(folder, teacher=teacher, augmentation="none")
        ...     store.get([(4, 0), (1, 0)], images[[4, 1]])["logits"].shape
        torch.Size([2, 3])
    """

    @typed
    def __init__(self, folder: str | Path, *, teacher: nn.Module | str, augmentation: str) -> None:
        self.folder = Path(folder)
        facts = _read_facts(self.folder)
        _check(self.folder, facts, _asked(teacher, augmentation))
        keys = [_key(key) for key in facts["keys"]]
        self.keys: dict[Key, int] = {key: row for row, key in enumerate(keys)}
        self.shards = Shards(self.folder, len(keys), facts["shard_size"], _digest(facts))

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self.keys)

    def __contains__(self, key: Hashable) -> bool:
        """Return whether a key is stored."""
        return key in self.keys

    @typed
    def get(
        self, keys: Sequence[Key], inputs: Tensor | None = None, *, dtype: torch.dtype | None = torch.float32
    ) -> dict[str, Tensor]:
        """Return the stored tensors of a batch of keys, by name.

        Args:
            keys: one (sample, view) per row of the batch.
            inputs: the student's inputs, compared with those of the teacher by a checksum of each sample.
            dtype: dtype of the tensors; None leaves them as they are stored.

        Raises:
            KeyError: a sample or a view of it is not stored.
            ValueError: there is no key, or the student's inputs are not those that the teacher had.
        """
        if not keys:
            raise ValueError("keys is empty: expected one (sample, view) per row of the batch")
        rows = [self._row(key) for key in keys]
        found = self.shards.read(rows)
        seen = found.pop("checksum")
        if inputs is not None:
            _compare(keys, checksum(inputs), seen)
        return found if dtype is None else {name: tensor.to(dtype) for name, tensor in found.items()}

    @classmethod
    @typed
    def write(
        cls,
        folder: str | Path,
        keys: Sequence[Key],
        compute: Compute,
        *,
        teacher: nn.Module | str,
        augmentation: str,
        dtype: Stored = "float16",
        batch_size: int = 64,
        shard_size: int = 1024,
    ) -> None:
        """Write a store in one pass over the keys; called again after an interruption, it goes on where it stopped.

        Args:
            folder: made if need be.
            keys: all (sample, view).
            compute: from a list of keys to the teacher's inputs for them and its tensors by name, both with a row per
                key; called without gradient.
            teacher: the model, or its `fingerprint`.
            augmentation: a description of all steps that the images go through.
            dtype: format of the file.
            batch_size: keys per call of `compute`.
            shard_size: keys per file.

        Raises:
            ValueError: a key is there twice, the folder holds another store, `compute` gives other shapes, or a number
                is not finite or too large for the format.
            ImportError: safetensors is not installed.
        """
        folder, wanted = Path(folder), [_key(key) for key in keys]
        if not wanted or len(set(wanted)) < len(wanted):
            raise ValueError(f"expected keys, each once, got {len(wanted)} of which {len(set(wanted))} differ")
        if batch_size < 1 or shard_size < 1:
            raise ValueError(f"batch_size and shard_size must be at least 1, got {batch_size} and {shard_size}")
        facts = _asked(teacher, augmentation) | {"dtype": dtype, "shard_size": shard_size, "keys": wanted}
        facts = json.loads(json.dumps(facts))
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / FACTS).exists():
            _check(folder, _read_facts(folder), facts)
        else:
            _write_facts(folder, facts)
        shards = Shards(folder, len(wanted), shard_size, _digest(facts), complete=False)
        for number in shards.missing:
            part = wanted[number * shard_size : (number + 1) * shard_size]
            batches = [part[start : start + batch_size] for start in range(0, len(part), batch_size)]
            with torch.no_grad():
                pieces = [_computed(compute, batch, getattr(torch, dtype)) for batch in batches]
            write_shard(shards.path(number), pieces, shards.digest)

    def _row(self, key: Key) -> int:
        if key in self.keys:
            return self.keys[key]
        views = sorted(view for sample, view in self.keys if sample == key[0])
        stored = f"views {views} are" if views else "no view is"
        raise KeyError(f"sample {key[0]!r} has no view {key[1]} in {self.folder}: {stored} stored")


def _computed(compute: Compute, keys: list[Key], dtype: torch.dtype) -> dict[str, Tensor]:
    inputs, tensors = compute(keys)
    if "checksum" in tensors or not tensors:
        raise ValueError(f"compute gave tensors called {sorted(tensors)}: expected some, and none called checksum")
    for name, tensor in (("inputs", inputs), *tensors.items()):
        if len(tensor) != len(keys):
            raise ValueError(f"compute gave {len(tensor)} rows of {name} for {len(keys)} keys")
    return {"checksum": checksum(inputs)} | {name: round_to(x, dtype, name) for name, x in tensors.items()}


def _compare(keys: Sequence[Key], ours: Tensor, theirs: Tensor) -> None:
    if len(ours) != len(theirs):
        raise ValueError(f"inputs has {len(ours)} rows for {len(theirs)} keys")
    # the images may come from another thread count or a device, so that their last bits differ
    wrong = (ours - theirs).abs() > 1e-4 * theirs.abs().amax(1, keepdim=True).clamp_min(1e-12)
    if bool(wrong.any()):
        key = keys[int(wrong.any(1).nonzero()[0])]
        raise ValueError(
            f"the student got other pixels of sample {key[0]!r}, view {key[1]}, than the teacher did: draw the view's "
            "augmentation from the same number, or write a store for these augmentations"
        )


def _key(key: Any) -> Key:
    sample, view = key
    return sample, int(view)


def _asked(teacher: nn.Module | str, augmentation: str) -> dict[str, Any]:
    print_of = teacher if isinstance(teacher, str) else fingerprint(teacher)
    return {"version": VERSION, "teacher": print_of, "augmentation": augmentation}


def _check(folder: Path, facts: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name, value in asked.items():
        if facts.get(name) != value:
            old, new = (repr(x) if name != "keys" else "others" for x in (facts.get(name), value))
            raise ValueError(f"{folder} is for {name} {old}, now asked for is {new}: write another store for it")


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no {FACTS}: write the store first, FeatureStore.write")
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete the folder and write the store again") from None


def _write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    part = folder / f"{FACTS}.part"
    part.write_text(json.dumps(facts))
    part.replace(folder / FACTS)
