"""How far a minibatch of each recipe gets: its bias, its variance, and the progress that the two leave.

Nothing is trained. A condition is a policy from a cold start, two engines and a staleness; every recipe is measured on
the same ones, exactly, and its progress is compared with that of as many responses that the target itself draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from firstorder.core import progress
from firstorder.core.method.recipe import Recipe
from firstorder.core.routing import flips
from firstorder.core.settings.toml import build, override, read
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.accuracy import Accuracy, accuracy
from firstorder.sim.exact.baselines import parabola, squares
from firstorder.sim.exact.compare import Shared, scene_of
from firstorder.sim.exact.edge_variance import edge_variance
from firstorder.sim.exact.edges import kl
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.trials.compare import interquartile_mean
from firstorder.sim.trials.long import LongCondition

from .kept import kept, median, over
from .study import Answer, Plan, Study

WORTH = 0.05  # of the progress on policy: a lead below it saves one response in twenty
PROMPTS, GROUP = 64, 16  # of a minibatch: 1,024 responses, as in arXiv 2512.01374
AGAINST = "minirl"
REPLAYED = ("minirl-r2", "minirl-r3")
RECIPES: Mapping[str, Sequence[str]] = dict.fromkeys(
    (
        "minirl",
        "minirl-r2",
        "minirl-r3",
        "minirl-no-clip",
        "minirl-r2-no-clip",
        "minirl-r3-no-clip",
        "minirl-no-is",
        "minirl-r3-no-is",
        "minirl-tis",
        "reinforce-is",
        "grpo",
        "cispo",
        "decoupled-ppo",
        "tis",
        "icepop",
        "dppo-tv",
        "dppo-kl",
        "m2po",
        "trm",
    ),
    (),
) | {"prefix ratio": ("minirl-no-clip", "ratio.span=prefix"), "step by ESS": ("minirl", "optimizer.step_scale=ess")}
WHOLE = ("gspo", "gmpo", "rspo", "ctpo", "vespo", "mis", "mis-geometric", "minpro", "trm-avg", "minirl-length-norm")
MODES = ("R2", "R3")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A condition: keys of `[sim]` that differ from the base, and the size of a group."""

    sim: Mapping[str, Any]
    group: int = GROUP

    @property
    def enumerated(self) -> bool:
        """Whether every response is looked at, so that every recipe is exact."""
        return self.sim.get("world") == "tree"

    def world(self, seed: int) -> Sim:
        """The `[sim]` section."""
        base = LongCondition(horizon=256, problems=4, noise=0.02).world(range(seed, seed + 1)).model_dump()
        return Sim(**base | {"lr": 0.1} | dict(self.sim))

    def recipe(self, name: str) -> Recipe:
        """A recipe with minibatches of so many responses."""
        file, *changes = RECIPES.get(name) or (name,)
        tree = override(read(file), changes)
        schedule = {"prompts": PROMPTS * GROUP // self.group, "group_size": self.group, "minibatches": 1}
        return build(Recipe, {**tree, "about": {"name": file}, "schedule": schedule})


def _noise(scale: float, *, expert: float | None = None, head: float = 0.0) -> Mapping[str, Any]:
    return {"numerics": Numerics(kind="noise", scale=scale, expert_scale=expert, head_scale=head)}


SHORT = {"world": "tree", "prompts": 2, "positions": 3, "vocab": 4, "right": 1, "horizon": 5}
BASE = Place(sim={})
PLACES: Mapping[str, Place] = {
    "base": BASE,
    "engines closer": Place(sim=_noise(0.005)),
    "engines further apart": Place(sim=_noise(0.1)),
    "flips, little else": Place(sim=_noise(0.05, expert=0.0)),
    "no flips": Place(sim=_noise(0.0, head=0.05)),
    "staleness 2": Place(sim={"staleness": 2}),
    "staleness 4": Place(sim={"staleness": 4}),
    "staleness 4, further apart": Place(sim={"staleness": 4, **_noise(0.1)}),
    "T = 64": Place(sim={"horizon": 64}),
    "T = 1024": Place(sim={"horizon": 1024}),
    "groups of 2": Place(sim={}, group=2),
    "T = 5, staleness 4": Place(sim={**SHORT, **_noise(0.1), "staleness": 4}),
}
QUICK = ("base", "engines further apart", "T = 5, staleness 4")


def _answer(plan: Plan) -> Answer:
    """Measure every recipe in every condition and policy that is not known yet, and read them."""
    names = QUICK if plan.quick else tuple(PLACES)
    cells = {_file(name, seed): (name, seed) for name in names for seed in plan.seeds}
    known = kept(plan.folder, {file: partial(cell, PLACES[name], seed) for file, (name, seed) in cells.items()})
    found = {name: [known[_file(name, seed)] for seed in plan.seeds] for name in names}
    rows = [row for name in names for row in read_rows(name, found[name])]
    steps = {name: _steps(of) for name, of in found.items()}
    settings = {name: {"sim": _plain(PLACES[name].sim), "group": PLACES[name].group} for name in names}
    return Answer(headline=headline(rows), rows=rows, measured={"settings": settings, "step by ESS": steps})


def _file(name: str, seed: int) -> str:
    return f"{name.replace(' ', '-').replace(',', '').replace('=', '')}-s{seed}"


def cell(place: Place, seed: int) -> dict[str, Any]:
    """One policy in one condition: how far the engines are apart, and the numbers of every recipe."""
    shared = Shared(scene=scene_of(place.world(seed), MODES))
    reference = shared.on_policy(place.recipe(AGAINST).schedule)
    assert reference is not None
    names = [*RECIPES, *(WHOLE if place.enumerated else ())]
    found, steps = {}, {}
    for name in progress.steps("recipes", names):
        one = shared.of(place.recipe(name))
        assert one is not None
        assert not one.sampled
        found[name] = numbers(one.natural, reference)
        if one.recipe.optimizer.step_scale is not None:
            steps = {"step": one.step, "best": one.natural.best_step}
            steps |= {"with": one.natural.stepped(one.step), "without": one.natural.stepped(1.0)}
            steps |= {"progress": one.natural.progress}
    oracles = {} if place.enumerated else _oracles(shared, place)
    found |= {name: numbers(of, reference) for name, of in oracles.items()}
    return {**_apart(shared), "on_policy": reference.progress, "recipes": found, "step": steps}


def _oracles(shared: Shared, place: Place) -> dict[str, Accuracy]:
    """The token ratio with every baseline that has a name, known beforehand in place of one from the group."""
    none = place.recipe("minirl-no-clip")
    recipe = none.model_copy(update={"advantage": none.advantage.model_copy(update={"baseline": "none"})})
    measurement, x = Measurement(scene=shared.scene, recipe=recipe), shared.directions("disabled")
    curve = parabola(shared.scene, "disabled", x)
    group = float(edge_variance(measurement, x))
    groups = recipe.schedule.prompts
    return {
        name: accuracy(
            measurement.update[0],
            shared.gradients["disabled"],
            (group + float(square - curve.none) / place.group) / groups,
            groups * place.group,
        )
        for name, square in squares(curve).items()
    }


def numbers(of: Accuracy, reference: Accuracy) -> dict[str, float]:
    """What is kept of a recipe: in units of ‖g‖², and in the progress of the reference."""
    return {
        "bias": of.bias / of.target,
        "variance": of.variance / of.target,
        "ceiling": of.ceiling,
        "relative": of.progress / reference.progress,
        "needed": of.responses_for(reference.progress),
    }


def _apart(shared: Shared) -> dict[str, float]:
    scene = shared.scene
    old, routes = scene.old["disabled"], scene.mu_old.routes.contexts
    differ = flips(old.routes.contexts, routes).double().mean(-1)
    target = scene.target["disabled"].logp.detach()
    return {
        "kl": float((scene.share * kl(scene.mu_old.logp, old.logp)).sum()),
        "flips": float((scene.share * differ).sum()),
        "kl_stale": float((scene.share * kl(old.logp, target)).sum()),
    }


def read_rows(name: str, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The recipes of a condition, one a row: medians over policies, the progress with its interval, and whether it is
    ahead of MiniRL."""
    recipes, every = (
        list(cells[0]["recipes"]),
        {key: over(cells, key) for key in ("kl", "flips", "kl_stale", "on_policy")},
    )
    shared: dict[str, Any] = {"condition": name} | {key: median(of) for key, of in every.items()}
    values = {
        recipe: {key: over([each["recipes"] for each in cells], recipe, key) for key in cells[0]["recipes"][recipe]}
        for recipe in recipes
    }
    medians = {recipe: {key: median(of) for key, of in values[recipe].items()} for recipe in recipes}
    rows = []
    for recipe in recipes:
        relative = interquartile_mean(values[recipe]["relative"])
        ahead = interquartile_mean(values[recipe]["relative"] - values[AGAINST]["relative"])
        row = shared | {"recipe": recipe, "oracle": recipe.startswith("b ")}
        row |= {key: medians[recipe][key] for key in ("bias", "variance", "ceiling")}
        row |= {"progress": relative.value, "progress_low": relative.low, "progress_high": relative.high}
        row |= {"needed": medians[recipe]["needed"], "frontier": _undominated(recipe, medians)}
        rows.append(row | {"against_minirl": None if recipe == AGAINST else verdict(ahead.low, ahead.high)})
    return rows


def verdict(low: float, high: float) -> str:
    """Whether a lead, given by its interval, is worth a change of recipe."""
    if low > WORTH:
        return "ahead"
    if high < -WORTH:
        return "behind"
    return "alike" if low >= -WORTH and high <= WORTH else "open"


def _undominated(recipe: str, medians: Mapping[str, Mapping[str, float | None]]) -> bool:
    """Whether no other recipe has both less bias and less variance; an oracle is none that can be used."""
    mine = [medians[recipe][key] or 0.0 for key in ("bias", "variance")]
    others = [[of[key] or 0.0 for key in ("bias", "variance")] for name, of in medians.items() if name[:2] != "b "]
    return not any(all(a < b for a, b in zip(other, mine, strict=True)) for other in others)


def _steps(cells: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Medians of what a step scaled by the effective sample size is, beside the best step."""
    return {key: median(over(cells, "step", key)) for key in cells[0]["step"]}


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """What replay is worth, condition by condition."""
    parts = []
    for replay in REPLAYED:
        mine = {row["condition"]: row["against_minirl"] for row in rows if row["recipe"] == replay}
        told = [
            f"{state} in {', '.join(name for name, of in mine.items() if of == state)}"
            for state in ("ahead", "behind", "open")
            if state in mine.values()
        ]
        alike = sum(of == "alike" for of in mine.values())
        parts.append("; ".join([f"{replay} against {AGAINST}: alike in {alike} of {len(mine)} conditions", *told]))
    return ". ".join(parts)


def _plain(sim: Mapping[str, Any]) -> dict[str, Any]:
    return {key: of.model_dump(exclude_defaults=True) if isinstance(of, Numerics) else of for key, of in sim.items()}


STUDY = Study(
    id="frontier",
    question="Which recipe gets furthest with a minibatch, and what do bias and variance each take?",
    source="arXiv 2512.01374, 2602.07078 (baselines), 2602.17616 (step by ESS)",
    rule="nothing is trained: every recipe with an exact variance, on 8 policies, by the progress of a minibatch of "
    "1,024 responses against the natural gradient, over that of as many responses which the natural target itself "
    "draws, with a leave-one-out baseline; against MiniRL, paired by policy: ahead or behind where the interval of the "
    f"difference lies beyond {WORTH}, alike where it lies within, else open; on the frontier where no recipe has both "
    "less bias and less variance, by medians",
    answer=_answer,
)
