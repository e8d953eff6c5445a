"""What a trainer that can be asked again tells: whether it agrees with itself, with and without others beside a
response, and at another temperature.

    score(tokens `[B, L]`, lengths `[B]`, temperature) -> log π(token t | tokens < t), `[B, L]` nats

Shapes: B responses, L positions, N sampled tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from .disagreement import fitted_temperature
from .finding import Finding

Score = Callable[[Tensor, Tensor, float], Tensor]

RESPONSES = 8  # that are scored again and again
FLOOR = 1e-3  # nats a token: what engines in float32 differ by, and nothing that was ever of harm
MORE = 2.0  # times as far from the rollout engine: two independent roundings make sqrt(2)
HOTTER = 1.1  # times the temperature, at which the trainer is asked whether D looks like a temperature
FITS = 0.5  # share of the square of D that a temperature must explain: more than all else together


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A few responses of the rollout engine and a trainer that scores.

    Args:
        tokens: int64 `[B, L]`, padded at the end.
        lengths: int64 `[B]`.
        mask: bool `[B, L]`, sampled tokens.
        logp_mu: `[B, L]` nats, of the rollout engine.
        logp_pi: `[B, L]` nats, of the trainer, as it scored these responses among others.
        score: the trainer.
        temperature: that was sampled at.
        limit: largest mean |D| of engines with the same weights, nats a token.
    """

    tokens: Tensor
    lengths: Tensor
    mask: Tensor
    logp_mu: Tensor
    logp_pi: Tensor
    score: Score
    temperature: float
    limit: float

    def at(self, temperature: float) -> Tensor:
        """log π, float64 `[B, L]`."""
        return scored(self.score, self.tokens, self.lengths, temperature)


def scored(score: Score, tokens: Tensor, lengths: Tensor, temperature: float) -> Tensor:
    """What a trainer answers, float64.

    Raises:
        DataError: it is of another shape.
    """
    with torch.no_grad():
        logp = torch.as_tensor(score(tokens, lengths, temperature))
    if logp.shape != tokens.shape:
        raise DataError(
            f"the trainer must return log-probs {list(tokens.shape)}, as the tokens are, got {list(logp.shape)}; "
            "position t holds log p(token t | tokens < t), position 0 anything"
        )
    return logp.detach().cpu().double()


def disagrees_with_itself(asked: Asked) -> Finding | None:
    """Scored twice, the trainer is as far from itself as the engines may be, or half as far as they are."""
    twice = _mean(asked.at(asked.temperature) - asked.at(asked.temperature), asked.mask)
    apart = _mean(asked.logp_mu - asked.logp_pi, asked.mask)
    if twice <= asked.limit and (apart <= asked.limit or 2 * twice < apart):
        return None
    return Finding(
        fault="not deterministic",
        evidence=f"scored twice, the trainer's log-probs differ by {twice:.2g} nats a token, and by {apart:.2g} from "
        "the rollout engine's",
        questions=("Is dropout on, or the model in training mode?", "Do the experts of a token hang on its batch?"),
    )


def hangs_on_padding(asked: Asked) -> Finding | None:
    """Beside others a response's log-probs are further from the rollout engine's than when it is scored alone."""
    alone = torch.zeros_like(asked.logp_pi)
    for row, length in enumerate(asked.lengths.tolist()):
        alone[row, :length] = scored(
            asked.score, asked.tokens[row : row + 1, :length], asked.lengths[row : row + 1], asked.temperature
        )[0]
    moved = _mean(alone - asked.logp_pi, asked.mask)
    by_itself, beside = (_mean(asked.logp_mu - x, asked.mask) for x in (alone, asked.logp_pi))
    if beside <= FLOOR or beside < MORE * by_itself:
        return None
    return Finding(
        fault="padding",
        evidence=f"scored alone, responses are {by_itself:.2g} nats a token from the rollout engine; in a padded batch "
        f"{beside:.2g}, moved by {moved:.2g}",
        questions=(
            "Does the trainer attend to padding, or count positions from it?",
            "Do padding tokens take room at the experts, or enter a norm?",
        ),
    )


def at_another_temperature(asked: Asked) -> Finding | None:
    """The trainer's log-probs at another temperature explain more of D than all else."""

    def score(at: float) -> Tensor:
        return asked.at(at)[asked.mask]

    mu, pi = asked.logp_mu[asked.mask], score(asked.temperature)
    d, hotter = mu - pi, score(asked.temperature * HOTTER) - pi
    size, square = float(d.abs().mean()), float(d.square().sum() * hotter.square().sum())
    if size <= FLOOR or square == 0 or float((d * hotter).sum()) ** 2 < FITS * square / 2:
        return None
    fitted, left = fitted_temperature(mu, score, asked.temperature)
    if left > min(asked.limit, (1 - FITS) ** 0.5 * size):  # what is left must be what engines may be apart
        return None
    return Finding(
        fault="temperature",
        evidence=f"the rollout engine's log-probs are those of the trainer at a temperature of {fitted:.3g} instead of "
        f"{asked.temperature:.3g}: mean |D| falls from {size:.2g} to {left:.2g} nats",
        questions=(
            "Which temperature do the rollout engine and the trainer divide their logits by?",
            "Are the rollout engine's log-probs taken before or after its temperature?",
        ),
    )


def _mean(x: Tensor, mask: Tensor) -> float:
    """Mean |x| on the mask."""
    return float(x[mask].abs().mean())
