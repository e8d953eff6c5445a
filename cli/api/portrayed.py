"""A tiny policy under two engines, with every replay and some methods, as the explorer shows it: exact, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Any

from .gridded import rounded

if TYPE_CHECKING:
    from firstorder.sim.config import Sim

POLICY: Mapping[str, Any] = {
    "vocab": 3,
    "horizon": 3,
    "prompts": 1,
    "layers": 2,
    "experts": 4,
    "top_k": 2,
    "width": 8,
    "expert_width": 8,
    "sharpness": 1.0,
    "seed": 6,
}
"""Small enough to be drawn; of this seed experts flip from the third noise on."""
NOISES = (0.05, 0.1, 0.2, 0.4, 0.8)
STALENESS = (0, 3)
METHODS = ("minirl", "minirl-no-clip", "minirl-no-is", "grpo", "gspo")
REPLAYS = ("disabled", "R2", "R3")
SHOWN = (
    *("j_seq", "j_seq_natural", "j_mu", "value_error", "replay_bias"),
    *("gradient_error", "gradient_error_natural", "cosine", "cosine_natural", "variance"),
    *("kl_mu_old", "kl_mu_old_replayed", "flip_rate", "tokens_flipped", "entropy"),
)


def policy() -> dict[str, Any]:
    """The nodes under every noise and staleness, and the numbers of every method and replay there."""
    from firstorder.core import progress

    places = [*product(NOISES, STALENESS)]
    return {
        "settings": dict(POLICY),
        "noises": list(NOISES),
        "staleness": list(STALENESS),
        "methods": list(METHODS),
        "replays": list(REPLAYS),
        "numbers": list(SHOWN),
        "prompt": _prompt(sim(*places[0])),
        "nodes": [nodes(*place) for place in places],
        "measured": [
            [measured(*place, *of) for of in product(METHODS, REPLAYS)] for place in progress.steps("policies", places)
        ],
    }


def sim(noise: float, stale: int) -> Sim:
    """The policy with its engines."""
    from firstorder.sim.config import Numerics, Sim

    return Sim(**POLICY, numerics=Numerics(kind="noise", scale=noise), staleness=stale)


def nodes(noise: float, stale: int) -> list[dict[str, Any]]:
    """Every prefix, with what the engines say there."""
    from firstorder.sim.exact.portrait import portrait

    return [_plain(asdict(each)) for each in portrait(sim(noise, stale))]


def measured(noise: float, stale: int, method: str, replay: str) -> list[Any]:
    """The numbers of `firstorder measure` in the order of `SHOWN`, and then the parts that cannot act."""
    from .measure import measure

    setting = sim(noise, stale).model_dump(exclude_unset=True)
    found = measure(method, {"router_replay.mode": replay, "sim": setting})
    values = (getattr(found, name) for name in SHOWN)
    return [*(None if value is None else rounded(value) for value in values), found.inert]


def _prompt(setting: Sim) -> list[int]:
    """The tokens of the measured prompt."""
    from firstorder.sim.tasks import task_of
    from firstorder.sim.tasks.task import rows

    tokens: Sequence[Sequence[int]] = task_of(setting).prompts(rows(setting)[0]).tokens.tolist()
    return list(tokens[0])


def _plain(value: Any) -> Any:
    """Rounded, all the way down."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return rounded(value) if isinstance(value, float) else value
