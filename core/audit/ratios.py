"""The ratio of the trained policy in its parts, where a dump has log-probs of π_θ beside those of π_old and μ.

    π_θ/μ = π_θ/π_old · π_old/μ

the first factor is what updates have moved since the batch was scored, the second what separates the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from firstorder.core.quantities import Quantity
from firstorder.core.training import diagnostics

from .clustered import Blocks, Clusters, clusters, estimates, of_moments, to_moments, withheld
from .numbers import one_each
from .seen import Seen
from .table import Cell, Column, Estimate, Table

THETA = "train_log_probs"  # the column that holds log π_θ, as miles dumps it in the loss
PAIRS = {"theta/mu": ("theta", "mu"), "theta/old": ("theta", "old"), "old/mu": ("old", "mu")}
SHOWN = ("kl", "k3_kl", "ratio_tail_2", "token_eff_sample_size", "seq_log_ratio_std", "seq_eff_sample_size")


def measured(seen: Seen) -> Clusters | None:
    """The sums of a chunk's responses, of every pair of policies; None where one of the three is missing."""
    theta = seen.chunk.column(THETA) if seen.paired else None
    if theta is None:
        return None
    theta = theta.double()
    mask = seen.usable & theta.isfinite() & (theta <= 0)
    logp = {"theta": torch.where(mask, theta, 0.0), "old": seen.stats.logp_old, "mu": seen.stats.logp_mu}
    blocks: Blocks = {}
    for name, (above, below) in PAIRS.items():
        stats = replace(seen.stats, logp_theta=logp[above], logp_old=logp[above], logp_mu=logp[below], mask=mask)
        moments = diagnostics.moments(one_each(stats))
        blocks |= {f"{name}:{key}": block for key, block in of_moments(moments).items()}
    return clusters(blocks)


def table(of: Clusters) -> Table:
    """The table: a row for each ratio."""
    rows: list[dict[str, Cell]] = [
        {"ratio": name, **_reliable(of, name)} for name in PAIRS if of.sums[f"{name}:d"][1] > 0
    ]
    heads = [Column(key=key, title=key, unit=q.unit, formula=q.formula) for key, q in _quantities().items()]
    return Table(
        name="ratio",
        title="The ratio in its parts",
        columns=(Column(key="ratio", title="ratio", formula="theta/mu = theta/old old/mu"), *heads),
        rows=tuple(rows),
        note="D of a row is the logarithm of its own ratio; theta/old is what the updates of the step moved so far.",
    )


def _quantities() -> Mapping[str, Quantity]:
    return {key: diagnostics.QUANTITIES[key] for key in SHOWN}


def _reliable(of: Clusters, pair: str) -> dict[str, Estimate]:
    found = estimates(of, _finalise(pair))
    ess, responses = found["seq_eff_sample_size"].value, float(of.sums[f"{pair}:seq_d"][1])
    return withheld(found, ess, responses, squares=("seq_eff_sample_size",), means=())


def _finalise(pair: str) -> Callable[[Blocks], Mapping[str, Tensor]]:
    def quantities(sums: Blocks) -> dict[str, Tensor]:
        own = {name.removeprefix(f"{pair}:"): block for name, block in sums.items() if name.startswith(f"{pair}:")}
        found = diagnostics.finalise(to_moments(own))
        return {name: found[name] for name in SHOWN}

    return quantities
