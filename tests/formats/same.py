"""Whether samples are the same to the last digit."""

import torch

COLUMNS = ("tokens", "mask", "logp_mu", "logp_old", "entropy", "advantage", "version", "routes", "routes_old")


def same(a, b):
    """Two values: tensors with NaN in the same places, or anything else."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return a is b if a is None or b is None else a == b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all()) if a.is_floating_point() else torch.equal(a, b)


def differing(read, made, names):
    """Names of the fields that are not the same in all samples; every other column must be missing."""
    assert len(read) == len(made)
    absent = {"step", *names, *COLUMNS} - {"step", *names}
    wrong = {
        name for x, y in zip(read, made, strict=True) for name in names if not same(getattr(x, name), getattr(y, name))
    }
    wrong |= {name for x in read for name in absent if getattr(x, name) is not None}
    return wrong


def shifted(sample, name):
    """A copy in which a column is read one row off."""
    import dataclasses

    return dataclasses.replace(sample, **{name: getattr(sample, name).roll(1, 0)})
