"""The published sizes of the Mamba and Mamba-2 language models, untrained."""

from typing import Any

from transmamba.models.builders import register
from transmamba.models.mamba_lm import MambaLM
from transmamba.nn import Mamba2Mixer


@register
def mamba_130m(**options: Any) -> MambaLM:
    """Build 24 blocks of width 768."""
    return _mamba(dim=768, depth=24, **options)


@register
def mamba_370m(**options: Any) -> MambaLM:
    """Build 48 blocks of width 1024."""
    return _mamba(dim=1024, depth=48, **options)


@register
def mamba_790m(**options: Any) -> MambaLM:
    """Build 48 blocks of width 1536."""
    return _mamba(dim=1536, depth=48, **options)


@register
def mamba_1_4b(**options: Any) -> MambaLM:
    """Build 48 blocks of width 2048."""
    return _mamba(dim=2048, depth=48, **options)


@register
def mamba_2_8b(**options: Any) -> MambaLM:
    """Build 64 blocks of width 2560."""
    return _mamba(dim=2560, depth=64, **options)


@register
def mamba2_130m(**options: Any) -> MambaLM:
    """Build 24 Mamba-2 blocks of width 768."""
    return _mamba2(dim=768, depth=24, **options)


@register
def mamba2_370m(**options: Any) -> MambaLM:
    """Build 48 Mamba-2 blocks of width 1024."""
    return _mamba2(dim=1024, depth=48, **options)


@register
def mamba2_780m(**options: Any) -> MambaLM:
    """Build 48 Mamba-2 blocks of width 1536."""
    return _mamba2(dim=1536, depth=48, **options)


@register
def mamba2_1_3b(**options: Any) -> MambaLM:
    """Build 48 Mamba-2 blocks of width 2048."""
    return _mamba2(dim=2048, depth=48, **options)


@register
def mamba2_2_7b(**options: Any) -> MambaLM:
    """Build 64 Mamba-2 blocks of width 2560."""
    return _mamba2(dim=2560, depth=64, **options)


def _mamba(vocab_size: int = 50277, **options: Any) -> MambaLM:
    return MambaLM(vocab_size, **options)


def _mamba2(vocab_size: int = 50277, **options: Any) -> MambaLM:
    return MambaLM(vocab_size, **{"mixer": Mamba2Mixer, "vocab_multiple": 16, **options})
