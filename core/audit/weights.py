"""What the weights of the shipped recipes, corrections among them, would make of a dump's tokens.

    f_t = clip(ratio)_t · correction_t  at  θ = θ_old

is what a recipe multiplies A / norm with in the first update of a step. Recipes whose ratio, correction and clip are
the same have one row. f reads no more than the log-probs that were sampled, and the signs of the dump's own advantages.

Shapes: B responses, L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from firstorder.core.method.parts import CLIPS, CORRECTIONS, RATIOS, REJECTIONS, SPANS
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import RECEIPTS, TokenWeights, receipts, token_weights
from firstorder.core.settings.toml import build, read, shipped

from .clustered import Blocks, Clusters, clusters, estimates, of_moments, withheld
from .numbers import one_each
from .seen import Seen
from .table import Cell, Column, Estimate, Table

ACTED = ("masked", "truncated", "saturated")
NAMED = 4  # recipes that a row lists


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Shipped recipes that share a weight.

    Args:
        recipe: one of them.
        names: all of them, the shortest first.
    """

    recipe: Recipe
    names: tuple[str, ...]

    @property
    def key(self) -> str:
        """What its row is called."""
        return self.names[0]

    @property
    def formula(self) -> str:
        """Its parts, those that are not 1."""
        r, c, j, clip = self.recipe.ratio, self.recipe.correction, self.recipe.rejection, self.recipe.clip
        parts = [f"r = {SPANS[r.span].formula} of {RATIOS[r.of].formula}"] if r.of != "none" else ["r = 1"]
        if clip.kind != "none":
            parts.append(f"clip {clip.kind}: {CLIPS[clip.kind].formula}")
        if c.kind != "none":
            parts.append(f"times {CORRECTIONS[c.kind].formula}, k of {c.of}")
        if j.kind != "none":
            where = ", where A < 0" if j.where == "negative" else ""
            parts.append(f"kept while {j.low:g} ≤ {j.over} of {REJECTIONS[j.kind].formula} ≤ {j.high:g}{where}")
        return "; ".join(parts)


@lru_cache
def weights() -> tuple[Weight, ...]:
    """Every weight of a shipped recipe that reads no more than sampled log-probs."""
    same: dict[str, list[Recipe]] = {}
    for name in shipped():
        recipe = build(Recipe, read(name))
        if recipe.about.unsupported is None and not recipe.needs and not recipe.terms.active:
            parts = (recipe.ratio, recipe.correction, recipe.rejection, recipe.clip)
            same.setdefault(repr([part.model_dump() for part in parts]), []).append(recipe)
    return tuple(
        Weight(recipe=recipes[0], names=tuple(sorted((each.about.name for each in recipes), key=lambda n: (len(n), n))))
        for recipes in same.values()
    )


def measured(seen: Seen) -> Clusters | None:
    """What every weight makes of a chunk's responses; None where a log-prob is missing."""
    if not seen.paired:
        return None
    blocks: Blocks = {}
    for weight in weights():
        made = _per_response(seen.stats, weight.recipe)
        blocks |= {f"{weight.key}/{name}": block for name, block in made.items()}
    return clusters(blocks)


def factor(made: TokenWeights, mask: Tensor) -> Tensor:
    """f, what multiplies A / norm, 0 off the mask; `[..., T]`."""
    return torch.where(mask, made.clipped * made.factor, 0.0)


def table(of: Clusters, *, signed: bool) -> Table:
    """The table.

    Args:
        of: the responses of the dump.
        signed: whether it has advantages.
    """
    rows: list[dict[str, Cell]] = [
        {
            "weight": weight.key,
            **_reliable(of, weight.key),
            "formula": weight.formula,
            "recipes": _list(weight.names),
        }
        for weight in weights()
    ]
    note = (
        "f = clip(ratio) correction at theta = theta_old, before A / norm: the first update of a step. A clip that "
        "reads a whole batch reads a chunk of the dump here."
    )
    lacks = " The dump has no advantages, so that clips by their sign drop nothing."
    return Table(
        name="weights",
        title="What the shipped recipes' weights would do",
        columns=COLUMNS,
        rows=tuple(rows),
        note=note if signed else note + lacks,
    )


def _per_response(stats: TokenStats, recipe: Recipe) -> Blocks:
    """What each response adds: sums of f and f² over its tokens, its mean f, and what each part did."""
    made = token_weights(stats, recipe)
    f, tokens = factor(made, stats.mask).double(), stats.mask.sum(-1).double()
    some = (tokens > 0).double()
    mean = f.sum(-1) / stats.lengths
    alone = TokenWeights(**{name: x[:, None] for name, x in vars(made).items()})
    acted = receipts(one_each(stats), alone, recipe)
    acted["clipped"] = acted["clip_upper"][0] + acted["clip_lower"][0], tokens
    return of_moments({name: acted[name] for name in (*ACTED, "clipped")}) | {
        "token": torch.stack([tokens, f.sum(-1), f.square().sum(-1)], -1),
        "sequence": torch.stack([some, mean, mean.square(), some * (mean == 0)], -1),
    }


def _reliable(of: Clusters, key: str) -> dict[str, Estimate]:
    found, responses = estimates(of, _finalise(key)), float(of.sums[f"{key}/sequence"][0])
    ess = found["ess_sequence"].value
    return withheld(found, ess, responses, squares=("ess_token", "ess_sequence"), means=("mean",))


def _finalise(key: str) -> Callable[[Blocks], Mapping[str, Tensor]]:
    def quantities(sums: Blocks) -> dict[str, Tensor]:
        own = {name.removeprefix(f"{key}/"): block for name, block in sums.items() if name.startswith(f"{key}/")}
        count, total, square = own["token"]
        responses, mean, squares, dropped = own["sequence"]
        return {name: own[name][0] / own[name][1] for name in (*ACTED, "clipped")} | {
            "mean": total / count,
            "ess_token": torch.where(square > 0, total.square() / (count * square), 0.0),
            "ess_sequence": torch.where(squares > 0, mean.square() / (responses * squares), 0.0),
            "dropped": dropped / responses,
        }

    return quantities


def _list(names: tuple[str, ...]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


_SHARE = RECEIPTS["masked"].unit
COLUMNS = (
    Column(key="weight", title="weight"),
    Column(key="mean", title="mean f", unit="1", formula="mean of f over tokens"),
    Column(key="clipped", title="clipped", unit=_SHARE, formula="the clip changed the ratio and A is not 0"),
    *(Column(key=name, title=name, unit=RECEIPTS[name].unit, formula=RECEIPTS[name].formula) for name in ACTED),
    Column(key="dropped", title="dropped", unit="share of responses", formula="f is 0 on every token"),
    Column(key="ess_token", title="ESS tokens", unit="fraction of tokens", formula="mean(f)^2 / mean(f^2) over tokens"),
    Column(
        key="ess_sequence",
        title="ESS responses",
        unit="fraction of responses",
        formula="the same of the mean f of each response",
    ),
    Column(key="formula", title="formula"),
    Column(key="recipes", title="recipes"),
)
