"""The published sizes of VMamba, untrained."""

from typing import Any

from transmamba.models.builders import register
from transmamba.models.vmamba import VMamba, vmamba_v0, vmamba_v2


@register
def vmamba_v0_tiny(**options: Any) -> VMamba:
    """Build VMamba-T of the first version."""
    return vmamba_v0((96, 192, 384, 768), (2, 2, 9, 2), **{"drop_path": 0.2, **options})


@register
def vmamba_v0_small(**options: Any) -> VMamba:
    """Build VMamba-S of the first version."""
    return vmamba_v0((96, 192, 384, 768), (2, 2, 27, 2), **{"drop_path": 0.3, **options})


@register
def vmamba_v0_base(**options: Any) -> VMamba:
    """Build VMamba-B of the first version."""
    return vmamba_v0((128, 256, 512, 1024), (2, 2, 27, 2), **{"drop_path": 0.6, **options})


@register
def vmamba_tiny_s2l5(**options: Any) -> VMamba:
    """Build VMamba-T, 5 blocks in the third stage."""
    return vmamba_v2((96, 192, 384, 768), (2, 2, 5, 2), expand=2.0, **{"drop_path": 0.2, **options})


@register
def vmamba_tiny_s1l8(**options: Any) -> VMamba:
    """Build VMamba-T, 8 narrow blocks in the third stage: the published one."""
    return vmamba_v2((96, 192, 384, 768), (2, 2, 8, 2), expand=1.0, **{"drop_path": 0.2, **options})


@register
def vmamba_small_s2l15(**options: Any) -> VMamba:
    """Build VMamba-S, 15 blocks in the third stage: the published one."""
    return vmamba_v2((96, 192, 384, 768), (2, 2, 15, 2), expand=2.0, **{"drop_path": 0.3, **options})


@register
def vmamba_small_s1l20(**options: Any) -> VMamba:
    """Build VMamba-S, 20 narrow blocks in the third stage."""
    return vmamba_v2((96, 192, 384, 768), (2, 2, 20, 2), expand=1.0, **{"drop_path": 0.3, **options})


@register
def vmamba_base_s2l15(**options: Any) -> VMamba:
    """Build VMamba-B, 15 blocks in the third stage: the published one."""
    return vmamba_v2((128, 256, 512, 1024), (2, 2, 15, 2), expand=2.0, **{"drop_path": 0.6, **options})


@register
def vmamba_base_s1l20(**options: Any) -> VMamba:
    """Build VMamba-B, 20 narrow blocks in the third stage."""
    return vmamba_v2((128, 256, 512, 1024), (2, 2, 20, 2), expand=1.0, **{"drop_path": 0.5, **options})
