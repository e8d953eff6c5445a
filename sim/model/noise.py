"""Noise that is a function of where it is, never of when it is evaluated.

Every number is a hash of (seed, prefix, layer, site, channel), so an engine with noise is a deterministic
function of the prefix, the same alone or in any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014), its unsigned constants written as two's-complement int64
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def mix(x: Tensor) -> Tensor:
    """One SplitMix64 output per int64, a bijection whose bits look independent."""
    z = x + _GOLDEN
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def combine(key: Tensor, part: Tensor | int) -> Tensor:
    """A new key from a key and one more coordinate (int64, broadcast)."""
    return mix(key * 3 + part)


def extend(prefix: Tensor | None, token: Tensor) -> Tensor:
    """The key of a prefix with one more token; None is the empty prefix."""
    return mix(token) if prefix is None else combine(prefix, token)


def uniform(key: Tensor) -> Tensor:
    """A float64 strictly inside (0, 1) from the upper 52 bits of each key; with 53 the largest would round to 1."""
    return (_shift(mix(key), 12).double() + 0.5) * 2.0**-52


def normal(key: Tensor) -> Tensor:
    """A standard normal per key, by the inverse distribution function."""
    draw: Tensor = torch.special.ndtri(uniform(key))
    return draw


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch shifts the sign in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
