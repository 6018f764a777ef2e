"""What the exercises' checks ask first of an answer."""

import numpy as np
import pytest

from lookalike.exercises import not_yet


@pytest.mark.parametrize("answer", [1, 10, np.int64(3)])
def test_answers_that_may_be_right(answer):
    assert not_yet(answer, 1, 10) == ""
    assert not_yet(0.5, 0, 1, whole=False) == not_yet(1, 0, 1, whole=False) == ""


@pytest.mark.parametrize("answer", [0, 11, -5, 2.0, 2.5, "3", True, (1, 2), [], float("nan"), {}])
def test_answers_that_cannot_be(answer):
    assert not_yet(answer, 1, 10).startswith("not yet: the answer is a whole number from 1 to 10")
    assert not_yet("a", 0, 1, whole=False).startswith("not yet: the answer is a number from 0 to 1")


def test_no_answer():
    assert not_yet(None, 1, 10).startswith("your turn")
