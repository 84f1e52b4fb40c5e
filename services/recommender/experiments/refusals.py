"""How bad input is refused here: the field, what it is, and how to mend it."""

from __future__ import annotations

import math

from shared.errors import FieldError, ValidationFailed


def refuse(field: str, message: str) -> ValidationFailed:
    """`raise refuse("alpha", "is 2; give …")`."""
    return ValidationFailed(f"{field} {message}", errors=[FieldError("/" + field, message)])


def check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise refuse("alpha", f"is {alpha}; give the accepted error rate between 0 and 1, such as 0.05")


def check_finite(field: str, *numbers: float) -> None:
    if not all(math.isfinite(number) for number in numbers):
        raise refuse(field, f"is {numbers}; leave out rows without a number before summing")


def check_positive(field: str, number: float) -> None:
    if not (math.isfinite(number) and number > 0):
        raise refuse(field, f"is {number}; give a number above 0")
