"""Good dumps for tests."""

from firstorder.core.audit.good import Kind, made


def clean(seed=0, **kind):
    return made(Kind(**kind), seed)
