"""The exercises' checks: what every answer is asked first."""
import math
from numbers import Integral, Real
from typing import Any


def not_yet(answer: Any, least: float, most: float, whole: bool = True) -> str:
    """Say what is wrong with an answer that must be a number from `least` to `most`; '' if fine."""
    if answer is None:
        return "your turn: put your answer in the place of None"
    kind = "whole number" if whole else "number"
    number = isinstance(answer, Integral if whole else Real) and not isinstance(answer, bool)
    if not number or not math.isfinite(answer) or not least <= answer <= most:
        return f"not yet: the answer is a {kind} from {least:,} to {most:,}, not {answer!r}"
    return ""
