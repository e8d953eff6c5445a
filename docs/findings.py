"""The numbers of docs/results.md, finding by finding, from tests/records and the map of the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import answers
import claimed
import mapped
import results
from firstorder.sim.trials import atlas as maps
from wording import estimate, short

NO_IS, NORM = "minirl - minirl-no-is", "minirl - minirl-length-norm"
SHOWN = ("base", "engines further apart", "staleness 4", "T = 64", "T = 1024")  # conditions of the frontier
RECIPES = ("minirl", "minirl-r2", "minirl-r3", "minirl-no-clip", "minirl-no-is")
LENGTHS = {  # findings whose border is a length
    "is": "importance sampling is worth 0.05 of reward",
    "collapse": "training collapses without it",
    "collapse-close": "the same, closer engines",
    "collapse-published": "the same, closer still",
}
Row = Mapping[str, Any]
Cells = list[list[str]]


def measured(claim: str) -> Row:
    """What the record holds of a claim."""
    found: Row = claimed.recorded(claim)[0]["measured"]
    return found


def rows(study: str, **wanted: Any) -> list[Row]:
    """The rows of a study's record that have these values."""
    found = (answers.record(study) or {"rows": []})["rows"]
    return [row for row in found if all(row.get(key) == value for key, value in wanted.items())]


def judged(claim: str) -> Mapping[str, Row]:
    """The conditions of a claim about training."""
    found: Mapping[str, Row] = measured(claim)["conditions"]
    return found


ORDERS = {"r3-value-order": "order", "r3-gradient-order": "order"} | dict.fromkeys(
    ("flips-value-order", "flips-gradient-order"), "order_where_flips"
)


def orders() -> Cells:
    """The order of each error, with its interval, and the verdict on it."""
    return [
        [
            "value" if "value" in name else "gradient",
            "R3" if name.startswith("r3") else "none, where a route flips",
            estimate(measured(name)[key]),
            claimed.recorded(name)[0]["verdict"],
        ]
        for name, key in ORDERS.items()
    ]


def orders_main() -> str:
    """The orders of the value error."""
    with_r3, without = (estimate(measured(name)[ORDERS[name]]) for name in ("r3-value-order", "flips-value-order"))
    return f"the value error is of order {with_r3} with R3, of {without} without, where a route flips"


PARTS = ("numerics", "gates", "flips", "staleness", "target")


def replay() -> Cells:
    """Parts of what an update is off by, at the first mini-batch of a rollout and at the eighth."""
    return [
        [
            row["world"],
            str(row["updates"]),
            "none" if row["replay"] == "disabled" else row["replay"],
            *(short(row[part]) for part in PARTS),
            f"{short(row['whole'])} [{short(row['whole_low'])}, {short(row['whole_high'])}]",
        ]
        for row in rows("replay")
        if row["updates"] in (0, 7) and row["replay"] in ("disabled", "R2", "R3")
    ]


def replayed(world: str, updates: int, replay: str) -> Row:
    """One row of the study `replay`."""
    return rows("replay", world=world, updates=updates, replay=replay)[0]


def replay_main() -> str:
    """What flips are of the gradient, and what replaces them."""
    none, r3 = (replayed("long", 0, replay) for replay in ("disabled", "R3"))
    return f"flips are {short(none['flips'])} of the gradient, R3's other target {short(r3['target'])}"


def crossover() -> Cells:
    """Errors against the natural gradient as θ moves."""
    found = measured("r2-r3-crossover")
    return [
        [
            name.removeprefix("staleness_"),
            *(estimate(at["gradient_error_natural"][mode]) for mode in ("disabled", "R2", "R3")),
            estimate(at["r3_minus_r2"]),
        ]
        for name, at in found.items()
        if name.startswith("staleness_")
    ]


def last_crossover() -> str:
    """The gap at both ends."""
    fresh, *_, last = crossover()
    return f"R3 - R2: {fresh[-1]} fresh, {last[-1]} at staleness {last[0]}"


def bounds_at(part: str, at: int, of: str, target: str, key: str) -> dict[str, float]:
    """The medians of bounds at a length, by name."""
    found = answers.record("bounds")
    assert found is not None
    wanted = [row for row in found["measured"][part] if (row["at"], row["of"], row["target"]) == (at, of, target)]
    wanted = [row for row in wanted if row["part"] == "policies" or row["part"].endswith(answers.NOISE)]
    return {row["name"]: row[key] for row in wanted if row[key] is not None}


def bounds() -> Cells:
    """How many bounds hold and are sharp, and the nearest on short and on long responses."""
    found = answers.record("bounds")
    assert found is not None
    cells = []
    for of, target, called in (("error", "disabled", "the error"), ("replay", "R3", "R3's replay bias")):
        mine = [row for row in found["measured"]["bounds"] if row["of"] == of]
        tight, small = bounds_at("policies", 5, of, target, "ratio"), bounds_at("longest", 32768, of, target, "limit")
        nearest, least = max(tight, key=lambda name: tight[name]), min(small, key=lambda name: small[name])
        cells.append(
            [
                called,
                f"{sum(row['holds'] is True for row in mine)} of {len(mine)}",
                f"{sum(row['sharp'] for row in mine)}",
                f"`{nearest}`, {short(tight[nearest])}",
                f"`{least}`, {short(small[least])}",
            ]
        )
    return cells


def bounds_main() -> str:
    """How near the nearest bound on the error is."""
    return f"{bounds()[0][1]} hold on the error; the nearest is {bounds()[0][3]} of its bound at T = 5, in the median"


def frontier() -> Cells:
    """The progress of some recipes, each with its interval over policies."""
    return [[condition, *(_progress(condition, recipe) for recipe in RECIPES)] for condition in SHOWN]


def progress(condition: str, recipe: str) -> Row:
    """One row of the study `frontier`."""
    return rows("frontier", condition=condition, recipe=recipe)[0]


def _progress(condition: str, recipe: str) -> str:
    row = progress(condition, recipe)
    return estimate({key: row[f"progress{end}"] for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))})


def frontier_main() -> str:
    """The progress with the ratio and without."""
    apart = SHOWN[1]
    return f"engines further apart: {_progress(apart, 'minirl')} with θ/μ, {_progress(apart, 'minirl-no-is')} without"


VERDICTS = ("cause", "in part", "not", "open")


def causes() -> Cells:
    """How often taking a suspect out of a run that declines took its loss away."""
    found = answers.record("causes")
    assert found is not None
    return [
        [each["claim"], *(str(len(rows("causes", suspect=each["suspect"], verdict=word))) for word in VERDICTS)]
        for each in found["measured"]["claims"]
    ]


def warnings() -> Cells:
    """The three readings that came nearest to an alarm."""
    told = sorted((row for row in rows("warnings") if row["auc_low"] is not None), key=lambda row: -row["auc_low"])[:3]
    return [
        [f"`{row['quantity']}`", *(answers.interval(row, name) for name in ("auc", "hits", "false_alarms", "lead"))]
        for row in told
    ]


def regimes() -> Cells:
    """Lengths at which findings begin to hold."""
    found = answers.record("regimes")
    assert found is not None
    return [
        [title, short(found["measured"]["kl"][name]), *(f"{row[end]:,.0f}" for end in ("below", "above"))]
        for name, title in LENGTHS.items()
        for row in rows("regimes", finding=name, axis="horizon")
    ]


def regimes_main() -> str:
    """The length of a collapse at the base."""
    _, kl, low, high = next(row for row in regimes() if row[0] == LENGTHS["collapse"])
    return f"without IS training collapses from {low} to {high} tokens on, at a KL of {kl}"


def _training(*claims: str, title: str) -> Cells:
    """A lead in every condition of some claims, with the share of seeds that collapsed without the part."""
    return [
        [f"[`{claim}`](claims/{claim}.md)", f"`{place}`", estimate(at["differences"][title]), _fallen(at, title)]
        for claim in claims
        for place, at in judged(claim).items()
        if title in at["differences"]
    ]


def _fallen(at: Row, title: str) -> str:
    return estimate(at["recipes"][title.split(" - ")[1]]["collapsed"])


def importance() -> Cells:
    """What importance sampling is worth in training, in every condition."""
    return _training("training-no-is", "training-long-is", "training-long-no-is", title=NO_IS)


def importance_main() -> str:
    """The order of the error of one update, and the largest lead in training."""
    order = measured("no-is-one-step")["minirl-r3-no-is"]["order"]
    longest = max(judged("training-long-no-is").values(), key=lambda at: at["differences"][NO_IS]["value"])
    return f"one update: order {estimate(order)}, no floor; training: up to {estimate(longest['differences'][NO_IS])}"


def norm() -> Cells:
    """What length normalisation costs in training."""
    return _training("training-length-norm", "training-long-length-norm", title=NORM)


def norm_main() -> str:
    """The floor in one update."""
    floor = measured("length-norm-floor")["gradient_error_by_alpha_at_0.001"]["1.0"]
    return f"a floor of {estimate(floor)} in the gradient; no loss seen in training"


def clip() -> Cells:
    """What the clip costs one update, and is worth to a run."""
    cost = measured("mask-cost")
    one = [
        [f"[`mask-cost`](claims/mask-cost.md), staleness {step}", "gradient error that the mask adds", estimate(added)]
        for step in (1, 3)
        for added in (cost[f"minirl_staleness_{step}"]["added_gradient_error"],)
    ]
    stale = [
        [f"[`training-stale`](claims/training-stale.md), `{place}`", title, estimate(value)]
        for place, at in judged("training-stale").items()
        for title, value in at["differences"].items()
    ]
    name = "training-long-off-policy"
    long = [
        [f"[`{name}`](claims/{name}.md), `{place}`", title, estimate(value)]
        for place, at in judged(name).items()
        if "n8-" in place or place.endswith("sampled")
        for title, value in at["differences"].items()
        if title.startswith("clip alone") or "r3 - " in title
    ]
    return one + stale + long


def clip_main() -> str:
    """The lead of the clip where the rollout is stale."""
    lead = next(iter(judged("training-stale").values()))["differences"]["lead of the clip"]
    return f"at N = 64 the clip is worth {estimate(lead)} of reward"


def samples() -> Cells:
    """The leads on both sides of the border."""
    return [[str(row["T"]), answers.interval(row, "lead"), results.STATES[row["holds"]]] for row in rows("samples")]


def paper() -> Cells:
    """The lead of R2 over R3 in the cosine of a sampled update, and over its standard error, paired over policies."""
    cells = []
    for horizon in mapped.LENGTHS:
        for n, wanted in mapped.PUBLISHED.items():
            r2, r3 = disagreement(horizon, n)
            lead, error = r2.score - r3.score, maps.apart(r2, r3)
            cells.append([f"{horizon:,}", str(n), wanted, f"{short(r2.score)}", f"{short(r3.score)}"])
            cells[-1] += [short(lead), f"{lead / error:.1f}"]
    return cells


def disagreement(horizon: int, n: int) -> tuple[maps.Numbers, maps.Numbers]:
    """R2 and R3 at the paper's engines, with θ/μ and, from N = 2 on, the clip."""
    found = maps.read().numbers(maps.Point(updates=n, horizon=horizon, **mapped.PAPER))
    clip = "no clip" if n == 1 else "clip"
    return found[f"R2, theta/mu, {clip}"], found[f"R3, theta/mu, {clip}"]


def paper_main() -> str:
    """By how much R2 leads where the paper has R3."""
    told = [row for row in paper() if row[2] == "R3"]
    low, high = min(float(row[-1]) for row in told), max(float(row[-1]) for row in told)
    return f"at N = 4 and 8 R2 leads R3 by {low:.1f} to {high:.1f} standard errors; the paper has R3 ahead"
