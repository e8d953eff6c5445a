"""A recipe inside somebody else's trainer: statistics in, loss, metrics and receipts out, on their device.

    method = Method(recipe)
    out = method(UnreadStats(logp_theta=..., logp_old=..., logp_mu=..., mask=..., advantage=...))
    out.loss.backward()
    numbers = out.read()  # the one time that the host waits for the device

Between the two nothing depends on a value, so that `torch.compile(method, fullgraph=True)` is one graph. What must hold
of the values is carried along as numbers and refused when they are read.

Shapes: B responses, T token positions, R rules, Q quantities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError, DataError
from firstorder.core.method.recipe import Recipe, check_runs
from firstorder.core.method.stats import Rule, TokenStats, refuse, rules
from firstorder.core.method.surrogate import TokenWeights, receipts, token_weights
from firstorder.core.method.terms import PREFIX, active, check_sampled, entropy_weights, total_loss, with_terms
from firstorder.core.method.terms import moments as term_moments
from firstorder.core.quantities import Moments, means

from . import diagnostics, strata

METRICS, RECEIPTS = "metric/", "receipt/"


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The global batch that a micro-batch, or a rank's share, is a part of.

    Args:
        responses: in all parts together.
        tokens: response tokens in all parts together; read where `aggregation.kind = token_mean`.
    """

    responses: Tensor | float
    tokens: Tensor | float


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is left of a step to be read. It holds no graph, and nothing in it has been waited for.

    Args:
        loss: scalar, without gradient.
        sums: float64 `[2, Q]`, numerators and denominators; those of micro-batches and ranks add up.
        faults: float64 `[R, 3]`: how many values break a rule, where the first one is, and what it is.
        names: of the Q quantities, `metric/` or `receipt/` first.
        broken: name, sentence and remedy of each rule.
        shape: of each rule's tensor.
    """

    loss: Tensor
    sums: Tensor
    faults: Tensor
    names: tuple[str, ...]
    broken: tuple[tuple[str, str, str], ...]
    shape: tuple[tuple[int, ...], ...]

    def read(self) -> dict[str, float]:
        """Wait for the device, once: the loss, the metrics of `core.training.diagnostics` and the receipts, by name.

        Raises:
            DataError: a value breaks a rule of `TokenStats`; the same line as where it is checked at once.
            NotFiniteError: the same, of the policy that is trained.
        """
        host = torch.cat([self.faults.flatten(), self.sums.flatten(), self.loss.double().flatten()]).cpu()
        first, last = self.faults.numel(), len(host) - 1
        self._refuse(host[:first].tolist())
        above, below = host[first:last].reshape(2, -1)
        found = {"loss": host[last]} | finalised(dict(zip(self.names, zip(above, below, strict=True), strict=True)))
        return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))

    def _refuse(self, faults: list[float]) -> None:
        """Raise for the first rule that is broken."""
        for i, (name, sentence, remedy) in enumerate(self.broken):
            count, place, value = faults[3 * i : 3 * i + 3]
            if count:
                refuse(name, sentence, remedy, int(count), unravelled(int(place), self.shape[i]), value)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a recipe makes of a batch. Nothing in it has been waited for.

    Args:
        loss: scalar; its gradient is minus the expected update, or minus this part's share of it.
        weights: of every token, with their factors; those that the batch would have on its own, without `[terms]`.
        record: what can be kept after the backward, and read later.
    """

    loss: Tensor
    weights: TokenWeights
    record: Record

    def read(self) -> dict[str, float]:
        """As `Record.read`."""
        return self.record.read()


class Method:
    """A recipe as a function of a batch. It neither replays routes nor steps an optimiser: that is the trainer's.

    Args:
        recipe: whose weight is used; schedule, optimizer, critic and replay are not read.

    Its terms read `logp_ref` and `entropy` of the statistics: the reference is the trainer's.

    Raises:
        ConfigError: the method does not fit the form, or a term reads whole distributions.
    """

    def __init__(self, recipe: Recipe) -> None:
        check_runs(recipe)
        check_sampled(recipe)
        self.recipe = recipe
        self.token_mean = recipe.aggregation.kind == "token_mean"
        # all that a weight reads of a batch but its length can be had from a part of it
        of_batch = [f"clip.kind = {recipe.clip.kind}"] if recipe.parts["clip.kind"].scope == "batch" else []
        of_batch += ["correction.mean_one"] * recipe.correction.mean_one
        self.indivisible = " and ".join(of_batch) or None

    def __call__(self, stats: TokenStats, whole: Whole | None = None) -> Outcome:
        """Loss, weights, metrics and receipts of a batch.

        Args:
            stats: `[B, T]`; an `UnreadStats` is not waited for.
            whole: where this is a part of a batch: the losses of the parts add up to that of the whole.

        Raises:
            DataError: a shape or a dtype is wrong, or the recipe needs what the statistics lack.
            ConfigError: a part is given, and the recipe's weight reads the whole batch.
        """
        if stats.logp_theta.ndim != 2:
            raise DataError(f"`logp_theta` must be [batch, token], got {list(stats.logp_theta.shape)}")
        if whole is not None and self.indivisible is not None:
            raise ConfigError(f"{self.indivisible} reads the whole batch; give it whole, without `whole`")
        factors = token_weights(stats, self.recipe)
        bonus = entropy_weights(stats, self.recipe) if self.recipe.terms.entropy else None
        loss = total_loss(stats, with_terms(factors.weight, stats, self.recipe), bonus)
        if whole is not None:
            loss = loss * self._share(stats, whole).to(loss.dtype)
        return Outcome(loss=loss, weights=factors, record=_record(stats, loss, moments(stats, factors, self.recipe)))

    def _share(self, stats: TokenStats, whole: Whole) -> Tensor:
        """What part of the whole batch's mean this one is, float64."""
        tokens = stats.mask.sum().double()
        if self.token_mean:
            return tokens / whole.tokens
        return torch.full_like(tokens, stats.logp_theta.shape[-2]) / whole.responses


def together(parts: Sequence[Record]) -> Record:
    """The records of micro-batches of one recipe as one: losses and sums are added, every fault is kept."""
    return Record(
        loss=torch.stack([part.loss for part in parts]).sum(0),
        sums=torch.stack([part.sums for part in parts]).sum(0),
        faults=torch.cat([part.faults for part in parts]),
        names=parts[0].names,
        broken=tuple(rule for part in parts for rule in part.broken),
        shape=tuple(shape for part in parts for shape in part.shape),
    )


def moments(stats: TokenStats, factors: TokenWeights, recipe: Recipe) -> Moments:
    """What is logged of a batch, as sums: diagnostics of the two engines, and what each part of the recipe did."""
    metrics = diagnostics.moments(stats) | strata.moments(stats)
    metrics |= term_moments(stats, recipe, active([recipe]))
    acted = receipts(stats, factors, recipe)
    return {METRICS + name: pair for name, pair in metrics.items()} | {
        RECEIPTS + name: pair for name, pair in acted.items()
    }


def finalised(sums: Moments) -> dict[str, Tensor]:
    """Metrics and receipts by name, from sums after any reduction."""
    metrics = {name.removeprefix(METRICS): pair for name, pair in sums.items() if name.startswith(METRICS)}
    acted = {name.removeprefix(RECEIPTS): pair for name, pair in sums.items() if name.startswith(RECEIPTS)}
    terms = {name: pair for name, pair in metrics.items() if name.startswith(PREFIX)}
    return diagnostics.finalise(metrics) | strata.finalise(metrics) | means(terms) | means(acted)


def unravelled(place: int, shape: tuple[int, ...]) -> list[int]:
    """The index of a position in a flattened tensor.

    Example:
        >>> unravelled(10, (2, 8))
        [1, 2]
    """
    index = []
    for size in reversed(shape):
        place, rest = divmod(place, size)
        index.append(rest)
    return index[::-1]


def _record(stats: TokenStats, loss: Tensor, acted: Moments) -> Record:
    checked = tuple(rules(stats))
    return Record(
        loss=loss.detach(),
        sums=torch.stack([torch.stack([x.double() for x in side]) for side in zip(*acted.values(), strict=True)]),
        faults=torch.stack([_fault(rule) for rule in checked]),
        names=tuple(acted),
        broken=tuple((rule.name, rule.sentence, rule.remedy) for rule in checked),
        shape=tuple(tuple(rule.x.shape) for rule in checked),
    )


def _fault(rule: Rule) -> Tensor:
    """[how many values break it, where the first is, which value that is], float64."""
    wrong = ~rule.right.flatten()
    places = torch.arange(len(wrong), device=wrong.device)
    first = torch.where(wrong, places, len(wrong) - 1).amin(-1, keepdim=True)
    return torch.stack([wrong.sum().double(), first[0].double(), rule.x.flatten().gather(0, first)[0].double()])
