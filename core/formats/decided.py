"""What a user has decided about routes, laid on samples of any format: which layers are MoE layers, what is a fill.

Shapes: L tokens, N layers of the file, M MoE layers, K experts a token.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from .format import Fill, Options
from .sample import ROUTED, Sample


def decided(sample: Sample, options: Options) -> Sample:
    """A sample with its MoE layers alone, and -1 in the rows that are a fill.

    Raises:
        DataError: there is no such layer.
    """
    if options.layers is None and options.fill in (None, "none", "minus-one"):
        return sample
    routes = {name: x for name in ROUTED if (x := getattr(sample, name)) is not None}
    notes = Counter(sample.notes)
    for name, given in routes.items():
        chosen = given if options.layers is None else _layers(sample.source, given, options.layers)
        filled = fills(chosen, options.fill)
        notes[f"rows of `{name}` that are a fill"] += int(filled.sum())
        routes[name] = torch.where(filled[..., None], -1, chosen)
    return replace(sample, **routes, notes=notes)


def fills(routes: Tensor, fill: Fill | None) -> Tensor:
    """The rows that are a fill, bool `[L, N]` of ids `[L, N, K]`: all zeros, or 0, 1, ..., K - 1 in order."""
    if fill == "zeros":
        return (routes == 0).all(-1)
    if fill == "arange":
        return (routes == torch.arange(routes.shape[-1], dtype=routes.dtype)).all(-1)
    return torch.zeros(routes.shape[:-1], dtype=torch.bool)


def _layers(source: str, routes: Tensor, layers: tuple[int, ...]) -> Tensor:
    if max(layers) >= routes.shape[1]:
        raise DataError(
            f"{source}: --layers names layer {max(layers)}, and the routes hold {routes.shape[1]} layers, from 0 on"
        )
    return routes[:, list(layers)]
