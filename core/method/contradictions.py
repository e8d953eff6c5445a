"""What the parts of a recipe cannot be together, each with what was got and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .parts import CLIPS, SPANS, readers
from .sections import Clip, Correction, Critic, Rejection, RouterReplay, Terms

if TYPE_CHECKING:
    from .recipe import Recipe


def contradictions(r: Recipe) -> list[tuple[bool, str]]:
    """Every way in which the parts of a recipe can contradict each other: whether it does, and what is wrong with the
    remedy."""
    c, j, n = r.correction, r.rejection, r.schedule.minibatches
    clip, correction = r.parts["clip.kind"], r.parts["correction.kind"]
    moving = r.ratio.of.startswith("theta/")
    bounded = "high" in correction.keys
    span = clip.span or r.ratio.span
    return [
        (
            r.advantage.std and not r.over_group,
            f"advantage.std needs a group baseline, got advantage.baseline = {r.advantage.baseline}; "
            "choose group_mean or leave_one_out",
        ),
        (
            r.advantage.gae_lambda != 1.0 and not r.has_critic,
            f"advantage.gae_lambda = {r.advantage.gae_lambda} is read by baseline value only, got "
            f"advantage.baseline = {r.advantage.baseline}; remove it or set advantage.baseline = value",
        ),
        (
            r.critic != Critic() and not r.has_critic,
            f"[critic] trains the baseline value only, got advantage.baseline = {r.advantage.baseline}; "
            "remove it or set advantage.baseline = value",
        ),
        (
            r.over_group and r.schedule.group_size < 2,
            f"advantage.baseline = {r.advantage.baseline} needs schedule.group_size >= 2, got {r.schedule.group_size}",
        ),
        (
            r.ratio.steps != 1 and "steps" not in r.parts["ratio.span"].keys,
            f"ratio.steps = {r.ratio.steps} is read by span {readers(SPANS, 'steps')} only; "
            f"set ratio.span = {readers(SPANS, 'steps')}",
        ),
        (
            r.ratio.of == "none" and r.ratio.span != "token",
            f"ratio.span = {r.ratio.span} has no ratio to span; set ratio.of",
        ),
        (
            r.ratio.router_floor is not None and not moving,
            f"ratio.router_floor = {r.ratio.router_floor} rescales a ratio of theta, got ratio.of = {r.ratio.of}; "
            "use theta/old",
        ),
        (
            clip.compares == "of" and not moving,
            f"clip.kind = {r.clip.kind} bounds a ratio of theta, got ratio.of = {r.ratio.of}; use theta/old",
        ),
        (
            r.ratio.span != span,
            f"clip.kind = {r.clip.kind} bounds the {span} ratio, got ratio.span = {r.ratio.span}; "
            f"set ratio.span = {span} or use ppo",
        ),
        *(
            (
                getattr(r.clip, key) != getattr(Clip(), key) and key not in clip.keys,
                f"clip.{key} = {_shown(getattr(r.clip, key))} is read by clip.kind = {readers(CLIPS, key)} only, "
                f"got {r.clip.kind}; remove it",
            )
            for key in ("budget", "cap", "temperature")
        ),
        (
            "low" in clip.keys and not clip.logarithmic and r.clip.low > 1.0,
            f"clip.low must be at most 1 (a ratio is positive), got {r.clip.low}",
        ),
        (
            bounded and c.low >= c.high,
            f"correction.low must be below correction.high, got {c.low} >= {c.high}",
        ),
        (
            bounded and c.low <= 0.0 and c.high == float("inf"),
            f"correction.kind = {c.kind} without a bound does nothing; set correction.high",
        ),
        (
            r.router_replay.mode == "disabled" and r.router_replay != RouterReplay(),
            f"[router_replay] has {str(r.router_replay).removeprefix('disabled ')}, but router_replay.mode = disabled "
            "replays nothing; set router_replay.mode",
        ),
        (
            r.router_replay.gates == "replayed" and r.router_replay.condition > 0,
            f"router_replay.condition = {r.router_replay.condition:g} brings in experts that have no replayed gate; "
            "set router_replay.gates = live",
        ),
        (
            c.kind == "none" and j.kind != "none" and (c.low, c.high) != (Correction().low, Correction().high),
            f"correction.low = {c.low}, correction.high = {c.high} are not read by correction.kind = none; set "
            "rejection.low, rejection.high or a correction.kind",
        ),
        (
            c.kind == "none" and c.mean_one,
            "correction.mean_one has no correction to divide; set correction.kind or remove it",
        ),
        (
            j.kind != "none" and j.low >= j.high,
            f"rejection.low must be below rejection.high, got {j.low} >= {j.high}",
        ),
        (
            j.kind != "none" and (j.low, j.high) == (Rejection().low, Rejection().high),
            f"rejection.kind = {j.kind} without a bound does nothing; set rejection.low or rejection.high",
        ),
        *(
            (
                getattr(r.terms, key) != getattr(Terms(), key) and not getattr(r.terms, of),
                f"terms.{key} = {getattr(r.terms, key)} is read beside terms.{of} only, got terms.{of} = 0; "
                f"remove it or set terms.{of}",
            )
            for key, of in (("reference_estimator", "reference_kl"), ("squared_of", "squared_log_ratio"))
        ),
        *(
            (
                part.lr * part.weight_decay > 1.0,
                f"{name}.lr x {name}.weight_decay = {part.lr * part.weight_decay:g} takes more than all of a weight "
                "away in a step; lower one of the two",
            )
            for name, part in (("optimizer", r.optimizer), ("critic", r.critic))
        ),
        (
            r.schedule.prompts % n != 0,
            f"schedule.prompts = {r.schedule.prompts} must be a multiple of schedule.minibatches = {n}",
        ),
        (
            r.about.scope is not None and r.about.scope != r.scope,
            f"about.scope = {r.about.scope} but the parts of the recipe make it {r.scope}",
        ),
    ]


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
