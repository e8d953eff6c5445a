"""The page of a run that collapsed: its table of symptoms, and the picture that leads from one to the others.

Both are made from the same list, in which every step names what backs it. The picture is an SVG in docs/images beside
its data, a JSON of the same name, and holds the digest of that and of this file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import tables
from walks import COLOURS, IMAGES, STYLE

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
SYMPTOMS = (
    Symptom(
        seen="reward falls while KL rises",
        numbers=("update/grad_norm", "inert/ratio", "route/flip_rate"),
        branches=(
            DRIFT,
            Branch(
                reading="the ratio is there",
                cause="steps too large, or too noisy: third row",
                remedy="a smaller optimizer.lr",
                evidence=("study causes",),
                command="firstorder study causes",
            ),
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
            Branch(
                reading="a norm of 0: all responses to a prompt earn the same",
                cause="no advantage is left",
                remedy="prompts of another difficulty",
                evidence=("claim group-mean",),
                command="firstorder measure minirl",
            ),
            replace(
                DRIFT, evidence=("claim drift", "claim training-long-is"), command="firstorder validate --only drift"
            ),
        ),
    ),
)


def table() -> str:
    """Every symptom, what to look at, and where that leads."""
    return tables.rows(
        ("seen; look at", "they say", "cause", "remedy", "backed by; shown by"),
        (cells for symptom in SYMPTOMS for cells in _cells(symptom)),
    )


def _cells(symptom: Symptom) -> list[list[str]]:
    first = f"**{symptom.seen}**; " + ", ".join(f"`{name}`" for name in symptom.numbers)
    return [
        [first if i == 0 else "", one.reading, one.cause, _code(one.remedy), f"{_links(one.evidence)}; `{one.command}`"]
        for i, one in enumerate(symptom.branches)
    ]


def _code(remedy: str) -> str:
    """A setting in code, words as they are."""
    return f"`{remedy}`" if "=" in remedy else remedy


def _links(evidence: tuple[str, ...]) -> str:
    return ", ".join(f"[`{name.split()[1]}`]({_anchor(*name.split())})" for name in evidence)


def _anchor(kind: str, name: str) -> str:
    if kind == "study":
        return f"studies.md#{name}" if name == "regimes" else f"#{name}"
    return f"claims/{name}.md"


def data() -> list[dict[str, Any]]:
    """What the picture is drawn from."""
    return [asdict(symptom) for symptom in SYMPTOMS]


def draw(symptoms: list[dict[str, Any]]) -> Figure:
    """From what is seen, on the left, by what the numbers say to the cause and its remedy."""
    count = sum(len(symptom["branches"]) for symptom in symptoms)
    figure = Figure(figsize=(10, 0.62 * count + 0.5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10), ylim=(-count - 0.1, 0.7))
    axes.axis("off")
    for x, head in ((1.15, "seen"), (4.3, "the numbers say"), (7.0, "cause"), (9.1, "remedy")):
        axes.text(x, 0.35, head, ha="center", va="center", fontsize=10, weight="bold")
    top = 0
    for i, symptom in enumerate(symptoms):
        rows = [-(top + k + 0.5) for k in range(len(symptom["branches"]))]
        _symptom(axes, symptom, sum(rows) / len(rows), rows, COLOURS[i % len(COLOURS)])
        top += len(rows)
    return figure


def _symptom(axes: Axes, symptom: dict[str, Any], middle: float, rows: list[float], colour: str) -> None:
    _box(axes, 0.1, 2.1, middle, fill(symptom["seen"], 24), colour)
    for y, branch in zip(rows, symptom["branches"], strict=True):
        axes.annotate("", (3.05, y), (2.25, middle), arrowprops={"arrowstyle": "-|>", "color": colour})
        axes.text(3.1, y, fill(branch["reading"], 38), ha="left", va="center", fontsize=8.5)
        axes.annotate("", (5.95, y), (5.6, y), arrowprops={"arrowstyle": "-|>", "color": colour})
        axes.text(6.0, y, fill(branch["cause"], 28), ha="left", va="center", fontsize=8.5)
        axes.annotate("", (8.15, y), (7.9, y), arrowprops={"arrowstyle": "-|>", "color": colour})
        axes.text(
            8.2,
            y,
            fill(branch["remedy"], 27, break_long_words=False),
            ha="left",
            va="center",
            fontsize=8.5,
            weight="bold",
        )


def _box(axes: Axes, left: float, width: float, y: float, words: str, colour: str) -> None:
    box = FancyBboxPatch((left, y - 0.42), width, 0.84, boxstyle="round,pad=0.02", facecolor="none", edgecolor=colour)
    axes.add_patch(box)
    axes.text(left + width / 2, y, words, ha="center", va="center", fontsize=9, weight="bold")


def digest() -> str:
    """Of the data of the picture and of what draws it."""
    return hashlib.sha256((IMAGES / f"{NAME}.json").read_bytes() + Path(__file__).read_bytes()).hexdigest()


def write() -> None:
    """The picture, data first."""
    (IMAGES / f"{NAME}.json").write_text(json.dumps(data(), indent=1, ensure_ascii=False) + "\n")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        draw(json.loads((IMAGES / f"{NAME}.json").read_text())).savefig(
            IMAGES / f"{NAME}.svg", metadata={"Date": None, "Description": digest()}
        )


if __name__ == "__main__":
    write()
