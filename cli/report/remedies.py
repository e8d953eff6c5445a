"""From what is seen of a run to its remedy: the table of docs/collapse.md, and the row of it that a run is in.

A row is chosen by what a run has written down of itself and nothing else: what its logs show, N, whether anything was
clipped, and whether its weights hold the ratio between the engines. No threshold is set here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from firstorder.core.runs.logs import Line

PAGE = "docs/collapse.md"
ENGINES = ("theta/mu", "old/mu")  # ratios of policies of both engines


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One way from a symptom to a remedy.

    Args:
        reading: what the numbers say on this way.
        cause: what that points to.
        remedy: what to change, in the words of a recipe.
        evidence: the studies, claims and examples behind it.
        command: what shows it.
    """

    reading: str
    cause: str
    remedy: str
    evidence: tuple[str, ...]
    command: str


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """What is seen, the three numbers to look at, and where they lead."""

    seen: str
    numbers: tuple[str, str, str]
    branches: tuple[Branch, ...]


DRIFT = Branch(
    reading="no ratio between θ and μ in the weight, and a large norm from the first update on",
    cause="drift: the train-infer ratio is left out",
    remedy="ratio.of=theta/mu",
    evidence=("claim drift", "study causes", "study regimes"),
    command="firstorder train docs/examples/mismatch.toml",
)
UNBOUNDED = Branch(
    reading="N > 1, the ratio leaves 1, and nothing is clipped",
    cause="stale updates without a bound",
    remedy="clip.kind=minirl",
    evidence=("claim training-stale",),
    command="firstorder train docs/examples/collapse.toml",
)
CORRECTED = Branch(
    reading="the ratio is there",
    cause="steps too large, or too noisy: third row",
    remedy="a smaller optimizer.lr",
    evidence=("study causes",),
    command="firstorder study causes",
)
ALIKE = Branch(
    reading="a norm of 0: all responses to a prompt earn the same",
    cause="no advantage is left",
    remedy="prompts of another difficulty",
    evidence=("claim group-mean",),
    command="firstorder measure minirl",
)
UNLEARNT = replace(
    DRIFT, evidence=("claim drift", "claim training-long-is"), command="firstorder validate --only drift"
)
SYMPTOMS = (
    Symptom(
        seen="reward falls while KL rises",
        numbers=("update/grad_norm", "inert/ratio", "route/flip_rate"),
        branches=(
            DRIFT,
            CORRECTED,
        ),
    ),
    Symptom(
        seen="entropy falls, or rises",
        numbers=("reward", "clip_upper", "update/grad_norm"),
        branches=(
            Branch(
                reading="it falls, and reward rises",
                cause="none: a policy that learns sharpens",
                remedy="leave it",
                evidence=("study warnings",),
                command="firstorder study warnings",
            ),
            UNBOUNDED,
            Branch(
                reading="it rises, and reward falls",
                cause="steps too large, or too noisy: next row",
                remedy="a smaller optimizer.lr",
                evidence=("study warnings", "study causes"),
                command="firstorder study causes",
            ),
        ),
    ),
    Symptom(
        seen="reward falls after a jump of the gradient's norm",
        numbers=("update/grad_norm", "seq_eff_sample_size", "ratio_tail_5"),
        branches=(
            Branch(
                reading="the sample size falls, the tail grows",
                cause="variance: few responses make the update",
                remedy="a larger schedule.group_size",
                evidence=("study causes", "study warnings"),
                command="firstorder study warnings",
            ),
            Branch(
                reading="both stay",
                cause="steps are too large",
                remedy="a smaller optimizer.lr",
                evidence=("study causes", "study regimes"),
                command="firstorder study causes",
            ),
        ),
    ),
    Symptom(
        seen="fine in training, worse deployed",
        numbers=("reward_pi", "reward", "route/flip_rate"),
        branches=(
            Branch(
                reading="reward_pi above reward, no replay",
                cause="π learns, and μ is deployed",
                remedy="finer numerics where it is served",
                evidence=("study causes",),
                command="firstorder study causes",
            ),
            Branch(
                reading="trained with replay, served without",
                cause="replay bias: another policy was trained",
                remedy="router_replay.mode=disabled",
                evidence=("claim replay-bias", "claim table-1"),
                command="firstorder measure minirl-r3",
            ),
        ),
    ),
    Symptom(
        seen="reward falls only with N > 1",
        numbers=("ratio_not_one", "clip_upper", "ratio_tail_2"),
        branches=(
            UNBOUNDED,
            Branch(
                reading="many tokens are clipped",
                cause="steps are too large for this N",
                remedy="a smaller optimizer.lr",
                evidence=("study causes",),
                command="firstorder study causes",
            ),
        ),
    ),
    Symptom(
        seen="nothing learns",
        numbers=("reward", "update/grad_norm", "masked"),
        branches=(
            ALIKE,
            UNLEARNT,
        ),
    ),
)


def lost(config: Mapping[str, Any], lines: Sequence[Line]) -> Branch:
    """The row of a run whose reward fell.

    Args:
        config: its settings by dotted key.
        lines: its steps, both logs together.
    """
    unclipped = config.get("clip.kind", "none") == "none" and not _ever(lines, "clip_upper", "clip_lower")
    if config.get("schedule.minibatches", 1) > 1 and unclipped:
        return UNBOUNDED
    return CORRECTED if _has_ratio(config) else DRIFT


def unlearnt(config: Mapping[str, Any], lines: Sequence[Line]) -> Branch | None:
    """The row of a run that learnt nothing, None where there is none for it; arguments as of `lost`."""
    if any("update/grad_norm" in line for line in lines) and not _ever(lines, "update/grad_norm"):
        return ALIKE
    return None if _has_ratio(config) else UNLEARNT


def _has_ratio(config: Mapping[str, Any]) -> bool:
    """Whether the weights hold a ratio between the engines."""
    corrects = config.get("correction.kind", "none") != "none" and config.get("correction.of") in ENGINES
    return corrects or config.get("ratio.of") in ENGINES


def _ever(lines: Sequence[Line], *names: str) -> bool:
    """Whether one of the quantities was other than 0 in some member at some step."""
    values = (line[name] for line in lines for name in names if name in line)
    return any(each for value in values for each in (value if isinstance(value, list) else [value]))
