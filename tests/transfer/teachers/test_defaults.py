"""A config.json leaves out keys that hold the default of their class, so families must know the same defaults."""

import pytest

from transmamba.transfer.teachers import families

from .versions import need, transformers

GIVEN = [(family, kind) for family in families().values() if family.defaults for kind in family.model_types]


def default(config, key):
    """Return the default of a key; the classes rewrite some keys when they are made."""
    rope = getattr(config, "rope_parameters", None) or {}
    if key == "rope_parameters":
        return rope
    rope = rope.get("full_attention", rope)
    return rope[key] if key in rope else getattr(type(config), key, getattr(config, key))


@pytest.mark.parametrize(("family", "kind"), GIVEN, ids=[kind for _, kind in GIVEN])
def test_defaults_are_those_of_the_configuration_class(family, kind):
    need(kind)
    config = transformers.CONFIG_MAPPING[kind]()
    assert {key: default(config, key) for key in family.defaults} == dict(family.defaults)
