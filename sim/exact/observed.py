"""Diagnostics and receipts of a measurement: what training logs of a batch, of all responses.

Where responses are enumerated both are sums over them. Where they are a sample, all that is a mean over tokens is one
over edges and exact, products of all ratios of a response are recursions and exact, and what is left is a mean over the
sample, with its interval.

Shapes: M members, B responses, T tokens, N contexts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import TokenWeights, receipts
from firstorder.core.quantities import Moments, add, means
from firstorder.core.training.diagnostics import finalise, moments

from . import objectives
from .advantages import AdvantageTable
from .measurement import Batch, Measurement, edge_stats
from .sampled import Interval, blocks, jackknife

OF_RESPONSES = ("chi2_seq", "training_ppl", "rollout_ppl", "ppl_ratio", "seq_log_ratio_std")
"""Diagnostics that are no mean over tokens and no product."""
Sums = dict[str, Moments]


def observed(measurement: Measurement) -> tuple[dict[str, Any], dict[str, Interval]]:
    """`diagnostics` and `receipts` of a measurement, and the intervals of those that were sampled, by dotted name."""
    if measurement.scene.exhaustive:
        sums: Sums = {}
        for batch in measurement.batches():
            sums = _added(sums, _sums(batch, measurement.recipe))
        return _finished(sums), {}
    parts = [_sums(batch, measurement.recipe) for batch in _split(measurement.batch)]
    whole: Sums = {}
    for part in parts:
        whole = _added(whole, part)
    found = _flat(_finished(whole))
    left_out = [_flat(_finished(_less(whole, part))) for part in parts]
    intervals = {
        name: jackknife(torch.tensor(x), torch.tensor([one[name] for one in left_out])) for name, x in found.items()
    }
    exact = _flat({"diagnostics": _of_edges(measurement), "receipts": _edge_receipts(measurement)})
    sampled = {name: interval for name, interval in intervals.items() if name not in exact}
    return _nested(found | exact), sampled


def _of_edges(measurement: Measurement) -> dict[str, float]:
    """The diagnostics that are exact without enumeration."""
    scene = measurement.scene
    sums = moments(edge_stats(scene, measurement.recipe))
    old = scene.old[measurement.mode].logp.detach()
    mu = scene.mu_old.logp
    found = {name: x for name, x in finalise(sums).items() if name not in OF_RESPONSES}
    found |= {
        "response_length": scene.reached.sum(-1),
        "reward_pi": objectives.value(old, scene.world),
    }
    if scene.readings is None:
        found |= {
            "seq_eff_sample_size": (-measurement.log_chi2).exp(),
            "second_order_remainder": scene.world.expansion(mu.exp(), (scene.met(old) - mu).expm1(), 2)[:, 2],
        }
    else:  # it is made of products of what is recorded: a mean over the sample
        found.pop("seq_eff_sample_size", None)
    return _averaged(found)


def _edge_receipts(measurement: Measurement) -> dict[str, dict[str, float]]:
    """The receipts of weights of tokens alone, by edge; nothing for others."""
    scene, table = measurement.scene, measurement.advantages
    if measurement.form is None or measurement.form.product or not isinstance(table, AdvantageTable):
        return {}
    stats, mu, weights = edge_stats(scene, measurement.recipe), scene.mu_old.logp.exp(), measurement.edge_weights
    worth = torch.stack([(table.plus > 0).double(), (table.minus > 0).double()], dim=1).transpose(-1, -2)
    signed = (scene.world.through(mu, mu, worth) * mu[:, None]).flatten(2)
    if scene.readings is not None:
        signed = torch.stack([scene.readings.share(one) for one in signed.unbind(1)], dim=1)
    found = {}
    for place, (name, sign) in enumerate({"positive": 1.0, "negative": -1.0}.items()):
        every = receipts(stats, weights[place], measurement.recipe)
        able = replace(stats.with_advantage(sign * stats.advantage), measure=signed[:, place])
        clipped = receipts(able, weights[place], measurement.recipe)
        total = every["masked"][1]
        found[name] = _averaged(means(every | {key: (clipped[key][0], total) for key in ("clip_upper", "clip_lower")}))
    return found


def _sums(batch: Batch, recipe: Recipe) -> Sums:
    """Moments of a batch, and what each part of a recipe did where an advantage can be positive or negative."""
    positive = batch.stats.with_advantage((batch.plus > 0).double())
    negative = batch.stats.with_advantage(-(batch.minus > 0).double())
    return {
        "diagnostics": moments(batch.stats),
        "receipts.positive": receipts(positive, batch.up, recipe),
        "receipts.negative": receipts(negative, batch.down, recipe),
    }


def _finished(sums: Sums) -> dict[str, Any]:
    return {
        "diagnostics": _averaged(finalise(sums["diagnostics"])),
        "receipts": {sign: _averaged(means(sums[f"receipts.{sign}"])) for sign in ("positive", "negative")},
    }


def _split(batch: Batch) -> list[Batch]:
    """A sample in blocks, weighed as a whole."""
    size = batch.stats.mask.shape[1]

    def cut(x: Tensor, part: slice) -> Tensor:
        return x[:, part] if x.ndim > 1 and x.shape[1] == size else x

    def of(values: TokenStats | TokenWeights, part: slice) -> dict[str, Tensor]:
        return {name: cut(x, part) for name, x in vars(values).items() if x is not None}

    return [
        replace(
            batch,
            stats=TokenStats(**of(batch.stats, part)),
            plus=cut(batch.plus, part),
            minus=cut(batch.minus, part),
            up=TokenWeights(**of(batch.up, part)),
            down=TokenWeights(**of(batch.down, part)),
        )
        for part in blocks(size)
    ]


def _added(a: Sums, b: Sums) -> Sums:
    return {name: add(a.get(name, {}), b[name]) for name in b}


def _less(a: Sums, b: Sums) -> Sums:
    return {
        group: {name: (above - b[group][name][0], below - b[group][name][1]) for name, (above, below) in sums.items()}
        for group, sums in a.items()
    }


def _averaged(values: dict[str, Tensor]) -> dict[str, float]:
    """Means over members."""
    return {name: float(value.mean()) for name, value in values.items()}


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Leaves by dotted name."""
    leaves: dict[str, float] = {}
    for name, value in table.items():
        leaves |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def _nested(leaves: dict[str, float]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    table: dict[str, Any] = {}
    for name, value in leaves.items():
        *path, last = name.split(".")
        inner = table
        for step in path:
            inner = inner.setdefault(step, {})
        inner[last] = value
    return table
