"""Vim gives the official numbers."""

from tests.models.official.cases import check_class_token_model, check_directions, every_run

CASES = ("vim_a", "vim_b_overlap_odd")


@every_run(*CASES)
def test_logits_streams_and_gradients_are_the_official_ones(case, dtype, backend):
    check_class_token_model(case, dtype, backend)


@every_run(*CASES)
def test_directions_are_the_official_ones(case, dtype, backend):
    check_directions(case, dtype, backend, scale=2)  # ours are halved already
