"""The golden vectors: what every method makes of every case, as one JSON document.

    {"schema", "version", "conventions", "cases", "methods", "groups", "expected"}

`expected` is a tree of entries, each with a tolerance and numbers, and so are the answers of another program:

    methods/METHOD/CASE   weight [B, T], gradient [B, T], loss, receipts by name
    terms/TERM/CASE       value [B, T], weight [B, T], gradient [B, T], each of the coefficient 1
    metrics/CASE          quantities by name
    advantages/RULE/GROUP advantage [groups, G], or [B, T] of a critic's values

Numbers are the shortest decimals that read back to the same float64; infinities are the texts "inf" and "-inf".
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.core.method.advantage import advantage
from firstorder.core.method.scale import scaled
from firstorder.core.method.sections import Advantage
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import receipts, surrogate_loss, token_weights
from firstorder.core.method.terms import bonus_loss, entropy_weights, term_weights, values
from firstorder.core.method.value import gae
from firstorder.core.runs.files import write_whole
from firstorder.core.training import diagnostics, strata

from .additive import Term, terms
from .batches import CASES
from .cases import Case
from .groups import GROUPS, LAMBDAS, RULES, VALUED, Valued
from .methods import Method, methods

SCHEMA = "firstorder.conformance/1"
VERSION = 2  # of the numbers: one that changes makes another version
TOLERANCE = 1e-7  # of |got - expected| / max(1, |expected|): float64 throughout, a few sums in another order
CONVENTIONS = {
    "numbers": 'float64 as shortest round-trip decimals; infinities as the texts "inf" and "-inf"; logarithms in nats',
    "agreement": "|got - expected| <= tolerance * max(1, |expected|)",
    "mask": "1 on response tokens; what stands elsewhere must not be read, and weight and gradient are 0 there",
    "weight": "w_t of u = mean over responses of sum_t w_t grad log pi(y_t), without gradient; a response without "
    "tokens counts in that mean",
    "loss": "-mean over responses of sum_t w_t log pi(y_t); a token with log-prob -inf is left out",
    "gradient": "of the loss by logp_theta: -w_t / B. A loss of another form agrees where its gradient does",
    "value": "of a term at each token, before its coefficient and what divides it, 0 off the mask; log-ratios are held "
    "within 20",
    "terms": "weight and gradient as above, of a term with the coefficient 1; of the entropy bonus by `entropy`, which "
    "a token with log-prob -inf has as well",
    "receipts": "[acted on, of how many] of each part, in tokens; in responses for `truncated` of a whole response",
    "metrics": "of logp_old and logp_mu over response tokens; those without a value on a case are left out",
}


def stats_of(case: Case) -> TokenStats:
    """A case as the functions of this package read it, float64."""
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in case.inputs().items()}
    mask = tensors.pop("mask").bool()
    return TokenStats(mask=mask, **tensors)


def outputs(case: Case, method: Method) -> dict[str, Any]:
    """Weight, loss, gradient and receipts of one method on one case, unrounded."""
    stats = stats_of(case)
    factors = token_weights(stats, method.recipe)
    leaf = stats.logp_theta.requires_grad_()
    loss = surrogate_loss(stats, factors.weight)
    (gradient,) = torch.autograd.grad(loss, leaf)
    acted = receipts(stats, factors, method.recipe)
    return {
        "weight": factors.weight.tolist(),
        "gradient": gradient.tolist(),
        "loss": loss.item(),
        "receipts": {name: [hit.item(), of.item()] for name, (hit, of) in acted.items()},
    }


def added(case: Case, term: Term) -> dict[str, Any]:
    """Value, weight and gradient of one term on one case, unrounded."""
    stats = stats_of(case)
    leaf = getattr(stats, term.by).requires_grad_()
    value = torch.where(stats.mask, values(stats, term.recipe)[term.kind], 0.0)
    if term.kind == "entropy":
        weight = entropy_weights(stats, term.recipe)
        loss = bonus_loss(stats, weight)
    else:
        weight = term_weights(stats, term.recipe)[term.kind]
        loss = surrogate_loss(stats, weight)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return {"value": value.tolist(), "weight": weight.tolist(), "gradient": gradient.tolist()}


def metrics(case: Case) -> dict[str, float]:
    """Every quantity of a case that has a value there."""
    stats = stats_of(case)
    found: dict[str, Tensor] = diagnostics.diagnose(stats) | strata.finalise(strata.moments(stats))
    values = {name: value.item() for name, value in found.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def advantages() -> dict[str, dict[str, Any]]:
    """Advantages by rule and group."""
    made: dict[str, dict[str, Any]] = {}
    for rule, keys in RULES.items():
        made[rule] = {
            name: _of_groups(torch.tensor(group, dtype=torch.float64), _section(keys)) for name, group in GROUPS.items()
        }
    for rule, keys in _learned().items():
        made[rule] = {name: _of_values(valued, _section(keys)) for name, valued in VALUED.items()}
    return made


def _section(keys: Mapping[str, Any]) -> Advantage:
    return Advantage(**{key.removeprefix("advantage."): value for key, value in keys.items()})


def _of_groups(rewards: Tensor, rule: Advantage) -> Any:
    """Every response of one token, all groups one batch."""
    a, flat = advantage(rewards, rule), rewards.flatten()
    return scaled(a.flatten(), flat, torch.ones(len(flat), 1, dtype=torch.bool), rule).view_as(a).tolist()


def _of_values(valued: Valued, rule: Advantage) -> Any:
    values, rewards = (torch.tensor(x, dtype=torch.float64) for x in (valued.values, valued.rewards))
    mask = torch.tensor(valued.mask, dtype=torch.bool)
    return scaled(gae(values, rewards, mask, rule.gae_lambda), rewards, mask, rule).tolist()


def document() -> dict[str, Any]:
    """The vectors as this package makes them now."""
    every, more = methods(), terms()
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "conventions": CONVENTIONS,
        "cases": {case.name: {"about": case.about, "inputs": case.inputs()} for case in CASES},
        "methods": {one.name: {"recipes": list(one.recipes), "settings": one.settings} for one in every},
        "terms": {one.name: {"recipes": one.recipes, "by": one.by, "settings": one.settings} for one in more},
        "groups": {
            "rewards": GROUPS,
            "rules": {**RULES, **_learned()},
            "values": {name: vars(valued) for name, valued in VALUED.items()},
        },
        "expected": {
            "methods": {one.name: {case.name: _entry(outputs(case, one)) for case in CASES} for one in every},
            "terms": {one.name: {case.name: _entry(added(case, one)) for case in CASES} for one in more},
            "metrics": {case.name: _entry(metrics(case)) for case in CASES},
            "advantages": {
                rule: {name: _entry({"advantage": found}) for name, found in groups.items()}
                for rule, groups in advantages().items()
            },
        },
    }


def _learned() -> dict[str, dict[str, Any]]:
    """The rules of a critic."""
    return {
        f"{rule}{ending}": {"advantage.baseline": "value", "advantage.gae_lambda": lam, **keys}
        for ending, keys in (("", {}), ("_whitened", {"advantage.scale": "whiten"}))
        for rule, lam in LAMBDAS.items()
    }


def _entry(numbers: dict[str, Any]) -> dict[str, Any]:
    return {"tolerance": TOLERANCE, **numbers}


def write(file: Path) -> None:
    """Put the vectors as they are now in a file."""
    write_whole(file, text(document()))


def text(tree: Mapping[str, Any]) -> str:
    """A document as JSON: tables on lines of their own, a list of numbers on one."""
    return _laid(_plain(tree), 0) + "\n"


def _laid(node: Any, depth: int) -> str:
    if not isinstance(node, dict) or not node:
        return json.dumps(node, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    pad = " " * (depth + 1)
    inner = (f"{pad}{json.dumps(key)}: {_laid(value, depth + 1)}" for key, value in node.items())
    return "{\n" + ",\n".join(inner) + "\n" + " " * depth + "}"


def _plain(value: Any) -> Any:
    """Tables and lists as JSON has them; infinities as texts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else str(value)  # and no -0
    return value


if __name__ == "__main__":
    write(Path(sys.argv[1]))
