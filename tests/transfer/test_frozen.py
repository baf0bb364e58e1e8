"""A right inheritance stays bit for bit as it was."""

import json

import pytest

from tests.transfer.frozen import PAIRS, RECORD, digest

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", PAIRS)
def test_the_student_is_the_one_on_record(name):
    assert digest(name) == json.loads(RECORD.read_text())[name]
