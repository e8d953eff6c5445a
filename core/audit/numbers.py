"""The table `numbers`: what the field logs of two engines, each with its interval, and how many tokens it is made of.

Every quantity is one of `core.training.diagnostics` and `core.training.strata`, made by their own functions from the
moments of single responses, or one of `QUANTITIES` below.

Shapes: B responses, L positions, M MoE layers, F bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from firstorder.core.method.stats import TokenStats
from firstorder.core.quantities import Moments, Quantity, means
from firstorder.core.training import backend, diagnostics, strata

from . import strata as parts
from .bins import LogBins
from .clustered import MANY, STEADY, Blocks, Clusters, clusters, estimates, of_moments, to_moments, withheld
from .seen import Seen
from .table import Cell, Column, Estimate, Table

BINS = LogBins(lowest=-26, highest=6, per_octave=4)  # of |D| in nats, from what float32 rounds off a log-prob
TOP = 0.01  # of the tokens

QUANTITIES: dict[str, Quantity] = {
    "abs_log_ratio": parts.ABS_LOG_RATIO,
    "rho_mean": Quantity(formula="mean(rho)", unit="1", source="verl rollout_corr/rollout_is_mean, untruncated"),
    "top_share": Quantity(
        formula="share of sum |D| that the 1 % of tokens with the largest |D| have, from a histogram of bins 19 % wide",
        unit="share of sum |D|",
        source="firstorder",
    ),
    "kl_unflipped": Quantity(
        formula="mean(-D) over the response tokens with routes of both engines and no flip; 0 where there are none",
        unit="nats/token",
        source="kl, where no experts flipped",
    ),
    "route/jaccard": Quantity(
        formula="mean |A ∩ B| / |A ∪ B| of the engines' expert sets over tokens and layers",
        unit="1",
        source="firstorder",
    ),
    "reward": Quantity(formula="mean R of the responses", unit="reward", source="verl critic/rewards/mean; TRL reward"),
}
READ_REWARDS = ("seq_rho_reward", "second_order_remainder")  # among the moments
ROUTED = ("route/flip_rate", "route/tokens_flipped", "update/entropy")


def measured(seen: Seen, moments: Moments) -> Clusters:
    """The sums of a chunk's responses.

    Args:
        seen: the chunk.
        moments: its `per_response`.
    """
    return clusters(of_moments(moments) | _histogram(seen))


def per_response(seen: Seen) -> Moments:
    """The moments of each response by itself, `[B]`."""
    found: Moments = {}
    if seen.paired:
        alone = one_each(seen.stats)
        found |= {name: _rewarded(seen, name, pair) for name, pair in diagnostics.moments(alone).items()}
        if seen.chunk.advantage is not None:
            found |= strata.moments(alone)
        tokens = found["d"][1]
        found["abs_log_ratio"] = seen.d.abs().sum(-1), tokens
        found["rho_mean"] = found["rho"]
    return found | routed(seen) | _others(seen)


def one_each(stats: TokenStats) -> TokenStats:
    """Each response as a batch of its own: `[B, T]` to `[B, 1, T]`."""
    given = {name: x[:, None] for name, x in vars(stats).items() if isinstance(x, Tensor)}
    return replace(stats, **given)


def routed(seen: Seen) -> Moments:
    """Flips, and the KL where experts flipped and where they did not, of each response; as `training.agreement` has
    them."""
    found = seen.agreement
    if found is None:
        return {}
    moments: Moments = {
        "route/flip_rate": (found.share_flipped.sum(-1), found.share_there.sum(-1)),
        "route/tokens_flipped": (found.hit.double().sum(-1), found.known.double().sum(-1)),
        "route/jaccard": (found.of_token(found.rows_overlap).sum(-1), found.share_there.sum(-1)),
    }
    if seen.paired:
        parts = {"kl_flipped": found.hit, "kl_unflipped": found.known & ~found.hit}
        moments |= {name: _over(part & seen.usable, -seen.d) for name, part in parts.items()}
    return moments


def table(of: Clusters, besides: Mapping[str, Estimate | None]) -> Table:
    """The table.

    Args:
        of: the responses of the whole dump.
        besides: further rows, by names of `strata.STALENESS`.
    """
    known = diagnostics.QUANTITIES | strata.QUANTITIES | backend.QUANTITIES | parts.STALENESS | QUANTITIES
    found: dict[str, Estimate | None] = {**reliable(of), **besides}
    rows = tuple(_row(name, value, known[name]) for name, value in found.items() if value is not None)
    return Table(name="numbers", title="The engines' disagreement", columns=COLUMNS, rows=rows, note=NOTE)


def reliable(of: Clusters) -> dict[str, Estimate]:
    """Every quantity, with an interval where one can be relied on."""
    found = estimates(of, finalise)
    if "seq_eff_sample_size" not in found:
        return found
    ess, responses = found["seq_eff_sample_size"].value, float(of.sums["seq_d"][1])
    return withheld(found, ess, responses, squares=("chi2_seq", "seq_eff_sample_size"), means=("reward_pi",))


def finalise(sums: Blocks) -> dict[str, Tensor]:
    """Every quantity that the sums have, a scalar each."""
    moments = to_moments({name: pair for name, pair in sums.items() if not name.startswith("bin_")})
    found: dict[str, Tensor] = {}
    if "d" in moments and moments["d"][1] > 0:
        found |= diagnostics.finalise(moments)
        found |= {"abs_log_ratio": _mean(moments["abs_log_ratio"]), "rho_mean": _mean(moments["rho_mean"])}
        found["top_share"] = top_share(sums["bin_count"], sums["bin_abs"])
    found |= strata.finalise(moments)
    own = ("kl_unflipped", "route/jaccard", "reward", *(() if "d" in moments else ("response_length",)), *ROUTED)
    return found | means({name: moments[name] for name in own if name in moments and moments[name][1] > 0})


def top_share(count: Tensor, total: Tensor) -> Tensor:
    """The share of Σ |D| that the largest 1 % have, a scalar; within the bin at the border all are taken to be equal.

    What it misses is below the share of the bin at the border times its width, 19 %.

    Args:
        count: tokens in each bin, `[F]`, ascending.
        total: their Σ |D|, `[F]`.
    """
    wanted = TOP * count.sum()
    above = count.flip(0).cumsum(0).flip(0) - count  # tokens in the bins beyond each
    border = int(((above < wanted) & (count > 0)).nonzero()[0, 0]) if bool((count > 0).any()) else 0
    taken = total[border + 1 :].sum() + (wanted - above[border]) * total[border] / count[border]
    return taken / total.sum()


def _histogram(seen: Seen) -> Blocks:
    """Tokens and Σ |D| of each response in bins of |D|, `[B, F]`."""
    if not seen.paired:
        return {}
    rows, x = seen.usable.nonzero()[:, 0], seen.d[seen.usable].abs()
    place, weights = BINS.place(x), {"bin_count": torch.ones_like(x), "bin_abs": x}
    return {name: BINS.sums(rows, place, each, len(seen.d)) for name, each in weights.items()}


def _others(seen: Seen) -> Moments:
    chunk, tokens = seen.chunk, seen.chunk.mask.sum(-1).double()
    found = {} if seen.paired else {"response_length": (tokens, (tokens > 0).double())}
    if chunk.entropy is not None:
        later = chunk.mask & chunk.entropy.isfinite()
        later[:, 0] = False
        found["update/entropy"] = _over(later, chunk.entropy)
    if chunk.rewards is not None:
        found["reward"] = torch.where(seen.rewarded, chunk.rewards, 0.0), seen.rewarded.double()
    return found


def _rewarded(seen: Seen, name: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A moment that reads rewards, without the responses that have none."""
    if name not in READ_REWARDS:
        return pair
    return torch.where(seen.rewarded, pair[0], 0.0), torch.where(seen.rewarded, pair[1], 0.0)


def _over(part: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(part, x, 0.0).sum(-1), part.double().sum(-1)


def _mean(pair: tuple[Tensor, Tensor]) -> Tensor:
    return pair[0] / pair[1]


def _row(name: str, value: Estimate, known: Quantity) -> dict[str, Cell]:
    return {
        "quantity": name,
        "value": value,
        "unit": known.unit,
        "alarm": known.alarm,
        "formula": known.formula,
        "source": known.source,
    }


COLUMNS = (
    Column(key="quantity", title="quantity"),
    Column(key="value", title="value [95 %]"),
    Column(key="unit", title="unit"),
    Column(key="alarm", title="alarm", formula="the level above which the source, and nobody else, speaks of danger"),
    Column(key="formula", title="formula"),
    Column(key="source", title="source"),
)
NOTE = (
    "D = log pi_old - log mu on usable tokens, rho = exp D; intervals are clustered by response. What squares the "
    f"product of a response's ratios has none below {MANY} responses or a sequence ESS of {STEADY:g}: a few unseen "
    "responses would decide it."
)
