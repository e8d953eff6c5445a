"""What a row of `core.method.parts` says of a kind is what its function does."""

import contextlib
from dataclasses import replace

import pytest
import torch

from firstorder.core.errors import ConfigError, DataError
from firstorder.core.method import advantage, aggregation, clip, correction, parts, ratio, rejection, scale
from firstorder.core.method.recipe import Advantage, Recipe
from firstorder.core.method.surrogate import token_weights
from firstorder.core.training.loop import check_trainable

TABLES = {
    "ratio.span": (parts.SPANS, ratio.FUNCTIONS),
    "correction.kind": (parts.CORRECTIONS, correction.FUNCTIONS),
    "rejection.kind": (parts.REJECTIONS, rejection.FUNCTIONS),
    "rejection.over": (parts.OVERS, rejection.OVERS),
    "clip.kind": (parts.CLIPS, clip.FUNCTIONS),
    "aggregation.kind": (parts.AGGREGATIONS, aggregation.FUNCTIONS),
    "advantage.baseline": (parts.BASELINES, advantage.FUNCTIONS),
    "advantage.scale": (parts.SCALES, scale.FUNCTIONS),
}
WEIGHTS = (
    "ratio.span",
    "correction.kind",
    "rejection.kind",
    "rejection.over",
    "clip.kind",
    "aggregation.kind",
    "ratio.of",
    "ratio.router_floor",
)
ROWS = [
    *((key, kind, row) for key, (table, _) in TABLES.items() for kind, row in table.items()),
    *(("ratio.of", of, row) for of, row in parts.RATIOS.items()),
    ("ratio.router_floor", 0.8, parts.ROUTER_FLOOR),
]
IN_A_WEIGHT = pytest.mark.parametrize(
    ("key", "kind", "row"),
    [each for each in ROWS if each[0] in WEIGHTS],
    ids=[f"{key}={kind}" for key, kind, _ in ROWS if key in WEIGHTS],
)
ACTING = {  # settings with which a kind acts on some tokens of the batch below
    "correction.kind": {"low": 0.7, "high": 1.2},
    "rejection.kind": {"low": -0.2, "high": 0.02},
    "rejection.kind=ratio": {"low": 0.8, "high": 1.2},
    "rejection.kind=kl": {"high": 0.02},
    "rejection.over": {"kind": "k2", "low": -1.0, "high": 0.3},
    "rejection.over=sum": {"high": 1.5},
    "rejection.over=max": {"high": 0.8},
    "clip.kind": {"low": 0.1, "high": 0.15},
    "tv": {"high": 0.02},
    "kl": {"high": 0.002},
    "m2po": {"budget": 1e-4},
    "forward": {"steps": 3},
    "length": {"alpha": 0.5},
    "constant": {"constant": 3.0},
}
LOOSE = {"m2po": {"budget": 0.3}}  # so that the bound is the batch's own
OTHER = {  # other values of a setting, one of which a kind that reads it feels
    "correction.kind": {"low": (0.05, 0.95), "high": (0.01, 1.05, 20.0)},
    "rejection.kind": {"low": (-1e3, 0.01, 0.9), "high": (0.002, 1.2, 1e3)},
    "clip.kind": {"low": (0.0, 0.3), "high": (0.0005, 0.05, 0.4), "budget": (1e-6, 0.5)},
    "alpha": (0.25,),
    "constant": (2.0,),
    "steps": (2,),
    "of": ("theta/old",),
    "span": ("prefix",),
    "mean_one": (True,),
    "over": ("mean",),
    "where": ("negative",),
    "cap": (1.05,),
    "temperature": ((4.0, 5.0),),
    "positive": ((1.0, 1.0),),
    "negative": ((1.0, 1.0),),
}


def method(key, kind, row, **settings):
    """A recipe of one part and nothing else but what that part must have beside it."""
    section, name = key.split(".")
    named = {} if section == "rejection" else ACTING.get(kind, {})  # `ratio` and `kl` are kinds of two sections
    own = ACTING.get(key, {}) | named | ACTING.get(f"{key}={kind}", {}) | {name: kind} | settings
    tree = {"ratio": {"of": "theta/mu" if key == "clip.kind" or section == "ratio" else "none"}}
    tree["ratio"] |= {"span": row.span} if row.span else {}
    return Recipe.model_validate({**tree, section: tree.get(section, {}) | own})


def weights(stats, recipe):
    return torch.where(stats.mask, token_weights(stats, recipe).weight, 0.0)


def felt(stats, recipe, change):
    """Which tokens' weights feel a change, `[B, T]`, their own advantages being kept."""
    return weights(change(stats), recipe) != weights(stats, recipe)


def moved(stats, where, far):
    """Other log-probs, divergences and lengths at some tokens."""
    shift = torch.where(where, far, 0.0)
    logs = {n: (getattr(stats, n) - size * shift).clamp(max=-1e-3) for n, size in (("logp_theta", 1), ("logp_old", 2))}
    return replace(stats, **logs, kl_mu=stats.kl_mu + shift.abs(), router_shift=stats.router_shift + shift.abs())


@pytest.mark.parametrize("key", TABLES)
def test_every_row_has_its_function_and_every_function_its_row(key):
    table, functions = TABLES[key]
    learned = {"value"} if key == "advantage.baseline" else set()  # made by core.method.value
    assert functions.keys() == table.keys() - learned


@pytest.mark.parametrize(("key", "kind", "row"), ROWS, ids=[f"{key}={kind}" for key, kind, _ in ROWS])
def test_every_row_says_what_it_makes_and_where_it_comes_from(key, kind, row):
    assert row.formula
    assert row.source
    section = Recipe.model_fields[key.split(".")[0]].annotation
    assert set(row.keys) <= set(section.model_fields)
    assert row.span is None or row.span in parts.SPANS


@IN_A_WEIGHT
def test_a_weight_reads_as_much_of_the_batch_as_its_row_says(make_stats, key, kind, row):
    stats, recipe = make_stats(3, size=40, spread=0.6), method(key, kind, row, **LOOSE.get(kind, {}))
    third = stats.mask & (stats.mask.cumsum(-1) == 3)
    odd = (torch.arange(40) % 2 == 1)[:, None].expand_as(stats.mask)

    def reads(other, mine, *more):
        changes = [lambda s, size=size: moved(s, other, size) for size in (-0.5, 0.5, 3.0)]
        return any(felt(stats, recipe, change)[mine].any() for change in (*changes, *more))

    def shorter(s):
        return replace(s, mask=s.mask & ~(odd & (s.mask.cumsum(-1) > 2)))

    scope = max(row.scope, recipe.weight_scope, key=parts.SCOPES.index)
    assert reads(odd, ~odd, shorter) == (scope == "batch")
    assert reads(~third, third) == (scope == "sequence") or scope == "batch"


def factor(stats, recipe, key):
    """What one part multiplies a weight by."""
    made = token_weights(stats, recipe)
    if key == "ratio.router_floor":
        return made.ratio / ratio.ratio(stats, recipe.ratio.of, "token")
    named = {"correction.kind": made.correction, "rejection.kind": made.kept, "ratio.of": made.ratio}
    return named.get(key, made.clipped / made.ratio)


@pytest.mark.parametrize(("key", "kind", "row"), [each for each in ROWS if each[0] in WEIGHTS and each[2].compares])
def test_a_part_is_idle_where_the_policies_that_it_compares_agree_and_acts_where_they_do_not(
    make_stats, key, kind, row
):
    recipe, stats = method(key, kind, row), make_stats(3, size=12)
    above, below = (f"logp_{name}" for name in recipe.compared(key).split("/"))
    equal = {below: getattr(stats, above), "kl_mu": 0 * stats.kl_mu, "router_shift": 0 * stats.router_shift}
    assert (factor(replace(stats, **equal), recipe, key)[stats.mask] == 1).all()
    assert (factor(stats, recipe, key)[stats.mask] != 1).any()


@pytest.mark.parametrize(
    ("key", "kind", "row", "setting"),
    [
        (key, kind, row, setting)
        for key, kind, row in ROWS
        if key in ("ratio.span", "correction.kind", "rejection.kind", "clip.kind", "aggregation.kind")
        for setting in {"ratio.span": ["steps"]}.get(
            key, Recipe.model_fields[key.split(".")[0]].annotation.model_fields
        )
        if setting != "kind"
    ],
)
def test_a_kind_reads_the_keys_of_its_row_and_no_other(make_stats, key, kind, row, setting):
    stats = make_stats(3, size=12, spread=0.6)
    before, acts = weights(stats, method(key, kind, row)), []
    for value in (OTHER.get(key, {}) | OTHER)[setting]:
        with contextlib.suppress(ValueError):  # a bound may cross the other, and what is not read may be refused
            acts.append(not torch.equal(weights(stats, method(key, kind, row, **{setting: value})), before))
    assert any(acts) == (setting in row.keys)


@IN_A_WEIGHT
def test_what_no_rollout_carries_is_asked_for_and_refused_before_training(make_stats, key, kind, row):
    recipe, bare = method(key, kind, row), replace(make_stats(), kl_mu=None, router_shift=None)
    if row.needs is None:
        check_trainable(recipe)
        token_weights(bare, recipe)
        return
    with pytest.raises(DataError, match=f"needs `{row.needs}`"):
        token_weights(bare, recipe)
    with pytest.raises(ConfigError, match=f"{key} = {kind} reads more than .* or set another {key}"):
        check_trainable(recipe)


@IN_A_WEIGHT
def test_only_a_row_that_says_so_reads_the_signs_of_other_responses(make_stats, key, kind, row):
    stats = make_stats(3, size=40, spread=0.6)
    recipe = method(key, kind, row, **LOOSE.get(kind, {}))
    sign = torch.where(torch.arange(40) % 2 == 1, -1.0, 1.0).double()
    assert felt(stats, recipe, lambda s: s.with_advantage(s.advantage * sign))[sign == 1].any().item() == row.signs


@pytest.mark.parametrize(("kind", "row"), parts.SCALES.items())
def test_a_scale_reads_the_batch_and_makes_the_recipe_that_has_it_do_so(kind, row):
    recipe = Recipe(advantage=Advantage(scale=kind))
    assert recipe.scope == ("batch" if row.scope == "batch" else "group")
    assert recipe.weight_scope == "token"
    mask = torch.ones(4, 2, dtype=torch.bool)
    one, other = (torch.tensor([1.0, 0.0, 1.0, x]) for x in (0.0, 3.0))
    first, second = (scale.scaled(a, a, mask, recipe.advantage)[0] for a in (one, other))
    assert (first != second).item() == (row.scope == "batch")


@pytest.mark.parametrize(("baseline", "row"), parts.BASELINES.items())
def test_a_baseline_reads_the_group_where_its_row_says_so(baseline, row):
    recipe = Recipe(advantage=Advantage(baseline=baseline))
    assert recipe.over_group == (row.scope == "group")
    if baseline in advantage.FUNCTIONS:
        one, other = (advantage.advantage(torch.tensor([1.0, 0.0, x]), recipe.advantage)[0] for x in (0.0, 3.0))
        assert (one != other).item() == (row.scope == "group")
