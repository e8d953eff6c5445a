"""What the tests of several readers ask: whether two samples are the same in every digit, and what is refused how."""

from same import COLUMNS
from same import same as same_value

from firstorder.core.errors import DataError

__all__ = ["COLUMNS", "differing", "doubled", "refusal", "same"]


def same(a, b, names=COLUMNS, scalars=("step", "group", "reward")):
    return not differing(a, b, names, scalars)


def differing(a, b, names=COLUMNS, scalars=("step", "group", "reward")):
    apart = [name for name in names if not same_value(getattr(a, name), getattr(b, name))]
    return apart + [name for name in scalars if getattr(a, name) != getattr(b, name)]


def refusal(call):
    """What a call is refused with, nothing where it is not; any other exception is let through."""
    try:
        call()
    except DataError as error:
        return str(error)
    return ""


def doubled(depth=200):
    """A tuple that would be endless if it were written out or walked through, and is small as it is."""
    value = ()
    for _ in range(depth):
        value = (value, value)
    return value
