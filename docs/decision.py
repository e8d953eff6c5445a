"""The page of a run that collapsed: its table of symptoms, and the picture that leads from one to the others.

Both are made from the same list, in which every step names what backs it. The picture is an SVG in docs/images beside its
data, a JSON of the same name, and holds the digest of that and of this file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import tables
from walks import COLOURS, GREY, IMAGES, STYLE

NAME = "collapse-decision"


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


SYMPTOMS = (
    Symptom(
        seen="reward falls while KL rises",
        numbers=("k3_kl", "inert/ratio", "route/flip_rate"),
        branches=(
            Branch(
                reading="N = 1, and no ratio or correction between θ and μ",
                cause="drift: the update leaves the train-infer ratio out",
                remedy="ratio.of=theta/mu",
                evidence=("claim drift", "study causes", "study regimes"),
                command="firstorder train docs/examples/mismatch.toml",
            ),
            Branch(
                reading="the ratio is there, and flips rise with KL",
                cause="the engines choose other experts",
                remedy="router_replay.mode=R3",
                evidence=("claim r3-value-order", "study causes"),
                command="firstorder measure minirl-r3",
            ),
        ),
    ),
    Symptom(
        seen="entropy falls or rises, reward falls",
        numbers=("update/entropy", "k3_kl", "ratio_tail_2"),
        branches=(
            Branch(
                reading="KL rises with it",
                cause="drift, as above",
                remedy="ratio.of=theta/mu",
                evidence=("claim drift", "study warnings"),
                command="firstorder train docs/examples/mismatch.toml",
            ),
            Branch(
                reading="KL stays, N > 1, and the ratio has a tail",
                cause="stale updates without a bound",
                remedy="clip.kind=minirl",
                evidence=("claim training-stale", "study causes"),
                command="firstorder train docs/examples/collapse.toml",
            ),
        ),
    ),
    Symptom(
        seen="reward falls after a jump of the gradient's norm",
        numbers=("update/grad_norm", "seq_eff_sample_size", "ratio_tail_5"),
        branches=(
            Branch(
                reading="the sample size falls with it",
                cause="variance: a few tokens make the update",
                remedy="schedule.group_size=32",
                evidence=("study causes", "study warnings"),
                command="firstorder study warnings",
            ),
            Branch(
                reading="the sample size stays",
                cause="steps are too large",
                remedy="optimizer.lr=5e-7",
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
                reading="without replay: reward_pi above reward",
                cause="π learns, and μ is what is deployed",
                remedy="numerics of the deployed engine",
                evidence=("study causes",),
                command="firstorder probe MODEL",
            ),
            Branch(
                reading="with replay: the live policy is worse than the replayed one",
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
            Branch(
                reading="the ratio leaves 1 and nothing is clipped",
                cause="stale updates without a bound",
                remedy="clip.kind=minirl",
                evidence=("claim training-stale", "study causes"),
                command="firstorder train docs/examples/collapse.toml",
            ),
            Branch(
                reading="many tokens are clipped",
                cause="the rollout serves too many updates",
                remedy="schedule.minibatches=2",
                evidence=("study causes", "study regimes"),
                command="firstorder study regimes",
            ),
        ),
    ),
    Symptom(
        seen="nothing learns",
        numbers=("reward", "update/grad_norm", "masked"),
        branches=(
            Branch(
                reading="every response of a group earns the same: the norm is 0",
                cause="no advantage is left",
                remedy="prompts that some responses solve",
                evidence=("claim group-mean",),
                command="firstorder measure minirl",
            ),
            Branch(
                reading="the norm is not 0, and responses are long",
                cause="drift: the update is at a right angle to the gradient",
                remedy="ratio.of=theta/mu",
                evidence=("claim drift", "claim training-long-is"),
                command="firstorder measure docs/examples/long.toml",
            ),
        ),
    ),
)
