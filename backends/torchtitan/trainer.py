"""The training engine: scores responses and takes optimiser steps, with torchtitan's model, optimizer and checkpoints.

Shapes: B responses of L positions, R packed rows of P, M MoE layers, K experts a token, V vocabulary.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from firstorder.backends.folder import read_shape
from firstorder.backends.ranks import all_gather_map, broadcast_from_rank0
from firstorder.backends.weights import open_weights
from firstorder.core.errors import ConfigError, DataError, NotFiniteError
from firstorder.core.method.recipe import Optimizer, Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.step_scale import effective_share, log_weights, step_scale
from firstorder.core.method.terms import entropy_weights, total_loss
from firstorder.core.routing import Replay
from firstorder.core.runs.checkpoint import digest
from firstorder.core.training.backend import Scored, WeightFn, take
from firstorder.core.training.batch import RolloutBatch
from firstorder.core.training.replay import run_rows

from . import adapter, model
from .config import Torchtitan
from .memory import microbatch
from .packing import Packed, chunks, pack
from .replay import recording, replaying, witnessed

CHECKPOINTS = "torchtitan"  # folder of the distributed checkpoints in that of the run


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Responses under π: `logp` `[B, L]` nats of each token given those before it, `entropy` `[B, L]` nats of the
    distribution it was drawn from, `outside` `[B, L]` the mass of π on tokens that a batch's mask leaves out (all 0
    at position 0 and on padding), `routes` int16 `[B, L, M, K]` (-1 in the row of the last token and beyond), `margin`
    `[B, L, M]` of the live choice and, if asked for, `gates` float32 `[B, L, M, K]`, the weights that the experts were
    given."""

    logp: Tensor
    entropy: Tensor
    outside: Tensor
    routes: Tensor
    margin: Tensor
    gates: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Update:
    """What an optimiser step did.

    Args:
        loss: of the mini-batch.
        grad_norm: before it was cut.
        rows: of each MoE layer, those that its router replayed, routed live, or changed by its replay.
        step_scale: what lr was multiplied by; None where the recipe leaves it.
    """

    loss: float
    grad_norm: float
    rows: Mapping[str, list[float]] = field(default_factory=dict)
    step_scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class Round:
    """Micro-batches that the ranks run side by side.

    Args:
        rows: the responses of all of them.
        mine: those of this rank.
        counts: False on a rank that is left over and repeats another's micro-batch, because every rank must take part
            in the collective forward.
    """

    rows: slice
    mine: slice
    counts: bool


class Trainer:
    """One rank of the training engine.

    Args:
        settings: the `[torchtitan]` section.
        recipe: its optimizer and how many updates it will make.
        temperature: that rollouts are sampled at; π is scored at the same.
        folder: of the run's checkpoints.
    """

    def __init__(self, settings: Torchtitan, recipe: Recipe, temperature: float, folder: Path) -> None:
        source = Path(settings.model)
        self.shape, self._folder = read_shape(source), folder
        weights = open_weights(source, self.shape)
        num_ranks = adapter.start_process_group(settings.timeout)
        parallelism, dims = model.layout(settings, num_ranks)
        self.settings, self.recipe, self.temperature, self._dims = settings, recipe, temperature, dims
        data = dims.get_optional_mesh("batch")  # None where every rank runs the same rows
        self._ranks = 1 if data is None else data.size()
        self._rank = 0 if data is None else data.get_local_rank()
        self._group = None if data is None else data.get_group()
        self.model = model.build(self.shape, settings, parallelism, dims)
        self.names = model.HuggingFace(model.model_config(self.shape, settings.pack_length), self.model)
        self.names.read(weights)
        self.reference = None
        if recipe.terms.reference_kl:
            self.reference = model.frozen(self.shape, settings, parallelism, dims, weights)
        self.optimizer = optimizer(recipe.optimizer, self.model)
        updates = recipe.schedule.steps * recipe.schedule.minibatches
        self.rate = learning_rate(settings.warmup_steps, updates, self.optimizer)
        self.checkpoints = adapter.CheckpointManager.Config(
            enable=True, folder=CHECKPOINTS, interval=1, keep_latest_k=3, initial_load_model_only=False
        ).build(
            dataloader=None,
            model_parts=[self.model],
            optimizers=self.optimizer,
            lr_schedulers=self.rate,
            states={},
            sd_adapter=None,
            base_folder=str(folder),
        )

    @microbatch()
    def score(self, batch: RolloutBatch, replay: Replay | None = None, *, gates: bool = False) -> Scores:
        """Score responses without gradient, recording the routes of every token that was run, and their gates."""
        rounds = []
        with torch.no_grad():
            for at in self._rounds(batch.lengths):
                packed = pack(batch.tokens[at.mine], batch.lengths[at.mine], self.settings.pack_length)
                given = None if replay is None else _packed(replay.each(itemgetter(at.mine)), packed)
                with replaying(self.model, given), recording(self.model, gates=gates) as record:
                    logp, entropy, *more = self._forward(packed, *_said(batch, at.mine), entropy=True)
                assert record.ids is not None
                assert record.margin is not None
                routes = packed.batch(record.ids.to("cpu", torch.int16), -1)
                run = run_rows(batch.lengths[at.mine], batch.tokens.shape[-1])
                routes = torch.where(run[..., None, None], routes, -1)
                margin = packed.batch(record.margin.cpu(), 0.0).double()
                weights = None if record.gates is None else packed.batch(record.gates.to("cpu", torch.float32), 0.0)
                outside = more[0] if more else torch.zeros_like(logp)
                own = Scores(logp=logp, entropy=entropy, outside=outside, routes=routes, margin=margin, gates=weights)
                rounds.append({name: self._everyones(x, at) for name, x in vars(own).items() if x is not None})
        return Scores(**{name: torch.cat([one[name] for one in rounds]) for name in rounds[0]})

    @microbatch()
    def score_reference(self, batch: RolloutBatch, replay: Replay | None = None) -> Tensor:
        """log-probs `[B, L]` nats of responses under the weights of the model folder, with the same replay."""
        found = []
        with torch.no_grad():
            for at in self._rounds(batch.lengths):
                packed = pack(batch.tokens[at.mine], batch.lengths[at.mine], self.settings.pack_length)
                given = None if replay is None else _packed(replay.each(itemgetter(at.mine)), packed)
                with replaying(self.reference, given):
                    (logp,) = self._forward(packed, batch.tokens[at.mine], of=self.reference)
                found.append(self._everyones(logp, at))
        return torch.cat(found)

    @microbatch()
    def update(self, minibatch: Scored, weight_fn: WeightFn) -> Update:
        """One optimiser step along Σ w ∇ log π_θ.

        Weights that read no further than their token are formed inside the micro-batches; the others need log π_θ of
        the whole mini-batch first. The ranks take a micro-batch each, tell each other log π_θ, and form the weights of
        all of them, so that weights and receipts are the same everywhere and gradients come from one's own rows.
        """
        batch, size = minibatch.batch, minibatch.logp_old.shape[-2]
        weight = bonus = None
        spread = self.recipe.terms.entropy > 0
        if self.recipe.weight_scope != "token":
            scores = self.score(batch, minibatch.replay)
            stats = minibatch.stats(scores.logp.where(batch.mask, 0.0), scores.entropy if spread else None)
            weight, bonus = weight_fn(stats), self._bonus(stats)
        self.optimizer.zero_grad()
        total, did, logs = 0.0, [], []
        for at in self._rounds(batch.lengths):
            piece, own = take(minibatch, at.rows), take(minibatch, at.mine)
            packed = pack(own.batch.tokens, own.batch.lengths, self.settings.pack_length)
            given = None if own.replay is None else _packed(own.replay, packed)
            with replaying(self.model, given):
                made = [self._everyones(x, at) for x in self._forward(packed, own.batch.tokens, spread=spread)]
                did.append(self._witnessed(packed, own.batch, given, at))
                stats = piece.stats(made[0].where(piece.batch.mask, 0.0), *made[1:])
                logs.append(log_weights(stats))
                share = (at.rows.stop - at.rows.start) / size
                if weight is None:
                    loss = total_loss(stats, weight_fn(stats), self._bonus(stats)) * share
                else:
                    loss = total_loss(stats, weight[at.rows], None if bonus is None else bonus[at.rows]) * share
                torch.autograd.backward(loss)
            total += float(loss.detach())
        # every rank holds the weights of all responses, so that all take the same step
        scale = float(step_scale(effective_share(torch.cat(logs)))) if self.recipe.optimizer.step_scale else None
        norm = self._step(total, 1.0 if scale is None else scale)
        return Update(loss=total, grad_norm=norm, rows=self._rows(did), step_scale=scale)

    @microbatch()
    def supervise(self, tokens: Tensor, lengths: Tensor, mask: Tensor) -> Update:
        """One optimiser step on the mean negative log-likelihood of the tokens of `mask`."""
        self.optimizer.zero_grad()
        total, count = 0.0, mask.sum()
        for at in self._rounds(lengths):
            packed = pack(tokens[at.mine], lengths[at.mine], self.settings.pack_length)
            logp = self._everyones(self._forward(packed, tokens[at.mine])[0], at)
            loss = -logp[mask[at.rows]].sum() / count
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return Update(loss=total, grad_norm=self._step(total))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every weight, under the names of Hugging Face."""
        return self.names.weights()

    def save(self, step: int) -> None:
        """Write the distributed checkpoint from which `step` follows, in place of a damaged or half-written one."""
        broadcast_from_rank0(lambda: shutil.rmtree(self._folder / CHECKPOINTS / f"step-{step}", ignore_errors=True))
        self.checkpoints.save(step)

    def digests(self, step: int) -> dict[str, str]:
        """The SHA-256 of the files of a checkpoint, by their paths in the folder of the run's checkpoints; each rank
        hashes what it wrote."""
        files = sorted((self._folder / CHECKPOINTS / f"step-{step}").iterdir())
        return all_gather_map([str(file.relative_to(self._folder)) for file in files], _writer, self._digest)

    def _digest(self, name: str) -> str:
        return digest(self._folder / name)

    def load(self, step: int) -> None:
        """Go on from a checkpoint.

        Raises:
            DataError: it is missing or damaged.
        """
        try:
            self.checkpoints.load(step)
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            raise DataError(
                f"the checkpoint of step {step} does not load: {model.last_line(error)}; start again in a new --out"
            ) from None

    def _rounds(self, lengths: Tensor) -> Iterator[Round]:
        """Micro-batches, as many at a time as there are ranks."""
        pieces = chunks(lengths, self.settings.pack_length, self.settings.microbatch_rows)
        for first in range(0, len(pieces), self._ranks):
            here = pieces[first : first + self._ranks]
            mine = here[min(self._rank, len(here) - 1)]
            yield Round(rows=slice(here[0].start, here[-1].stop), mine=mine, counts=self._rank < len(here))

    def _everyones(self, own: Tensor, at: Round) -> Tensor:
        """`own` `[b, ...]` of this rank among those of every rank in a round; only one's own carry a gradient."""
        if self._ranks == 1:
            return own
        wire = own.dtype if own.is_floating_point() else torch.int32  # no backend adds up int16
        gathered = torch.zeros((at.rows.stop - at.rows.start, *own.shape[1:]), dtype=wire, device=own.device)
        here = slice(at.mine.start - at.rows.start, at.mine.stop - at.rows.start)
        if at.counts:
            gathered[here] = own.detach().to(wire)
        torch.distributed.all_reduce(gathered, group=self._group)
        gathered = gathered.to(own.dtype)
        own_counts = torch.tensor(at.counts, device=own.device)  # where it does not, the gradient is 0 but not absent
        return torch.cat([gathered[: here.start], torch.where(own_counts, own, gathered[here]), gathered[here.stop :]])

    def _witnessed(self, packed: Packed, own: RolloutBatch, given: Replay | None, at: Round) -> dict[str, Tensor]:
        """What the routers of this rank did in the forward of its micro-batch, which counts once over all ranks."""
        run = run_rows(own.lengths, own.tokens.shape[-1]) & at.counts
        counts = witnessed(self.model, given, packed.rows(run, 0).to(adapter.device_type))
        return {name: rows.cpu() for name, rows in counts.items()}

    def _rows(self, did: list[dict[str, Tensor]]) -> dict[str, list[float]]:
        """The rows of all micro-batches of all ranks."""
        total = torch.stack([torch.stack([one[name] for one in did]).sum(0) for name in did[0]])
        if self._ranks > 1:
            torch.distributed.all_reduce(total, group=self._group)
        return dict(zip(did[0], total.tolist(), strict=True))

    def _bonus(self, stats: TokenStats) -> Tensor | None:
        """What each token's entropy is multiplied by in the loss; None without a bonus."""
        return entropy_weights(stats, self.recipe) if self.recipe.terms.entropy else None

    def _forward(
        self,
        packed: Packed,
        tokens: Tensor,
        kept: Tensor | None = None,
        *,
        entropy: bool = False,
        spread: bool = False,
        of: Any = None,
    ) -> tuple[Tensor, ...]:
        """log π of each token given those before it and, if asked for, the entropy of its distribution, `[B, L]`; with
        `spread` that has a gradient. `of` is another model than the one that is trained.

        Over the tokens `kept` `[B, L, C]` where these are given, and then with the entropy the mass outside of them.
        Responses, weights and statistics live in host memory; only the model and what it computes are on the device.
        """
        following = torch.where(packed.place[:, 1:] >= 0, tokens[:, 1:], adapter.IGNORE_INDEX)
        ending = torch.full_like(tokens[:, :1], adapter.IGNORE_INDEX)
        labels = packed.rows(torch.cat([following, ending], dim=1), adapter.IGNORE_INDEX)
        there, positions, labels = (x.to(adapter.device_type) for x in (packed.tokens, packed.positions, labels))
        ids = None if kept is None else packed.rows(_before(kept), -1).to(adapter.device_type)
        scorer = self.model if of is None else of
        scores = scorer(
            there,
            positions=positions,
            attention_masks=adapter.attention_masks(scorer, positions),
            labels=labels,
            temperature=self.temperature,
            entropy=entropy,
            kept=ids,
            spread=spread,
        )
        return tuple(_shift(packed.batch(x.to("cpu", torch.float64), 0.0), packed.place) for x in scores)

    def _step(self, loss: float, scale: float = 1.0) -> float:
        norm = adapter.dist_utils.clip_grad_norm_(
            self.model.parameters(), self.recipe.optimizer.max_grad_norm, ep_enabled=self._dims.ep_enabled
        )
        if not torch.isfinite(norm):
            raise NotFiniteError(
                f"the gradient is not finite, at a loss of {loss:g}, and no step was taken; lower optimizer.lr or "
                "bound the ratio with correction or clip"
            )
        groups = [group for one in self.optimizer for group in one.param_groups]
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * scale
        self.optimizer.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self.rate.step()
        return float(norm)


def optimizer(section: Optimizer, trained: Any) -> Any:
    """torchtitan's optimizer container for a recipe's section.

    Raises:
        ConfigError: it is none of torchtitan's optimizers.
    """
    if section.kind != "adamw":
        raise ConfigError(f"torchtitan has no optimizer.kind = {section.kind}; set optimizer.kind = adamw")
    config = adapter.default_adamw(
        lr=section.lr, betas=section.betas, eps=section.eps, weight_decay=section.weight_decay
    )
    config.implementation = "foreach" if adapter.ON_CPU else "fused"
    return config.build(model_parts=[trained])


def _writer(name: str) -> int:
    """The rank that wrote a file of a distributed checkpoint, `__RANK_NUMBER.distcp`; the first for the others."""
    match = re.search(r"__(\d+)_\d+\.distcp$", name)
    return int(match[1]) if match else 0


def learning_rate(warmup: int, updates: int, of: Any) -> Any:
    """torchtitan's schedule of an optimizer: linear warm-up, then constant."""
    config = adapter.LRSchedulersContainer.Config(warmup_steps=warmup, decay_ratio=0.0)
    return config.build(optimizers=of, training_steps=updates)


def _packed(replay: Replay, packed: Packed) -> Replay:
    """What is replayed in responses `[B, L, M, K]`, laid out in rows on the device, -1 where nothing lies."""
    rows = replay.each(lambda x: packed.rows(x, -1))
    there = {name: x.to(adapter.device_type) for name, x in vars(rows).items() if x is not None}
    return Replay(**there)


def _said(batch: RolloutBatch, rows: slice) -> tuple[Tensor, Tensor | None]:
    """The tokens of some responses, and those that each was sampled from."""
    return batch.tokens[rows], None if batch.kept is None else batch.kept[rows]


def _before(kept: Tensor) -> Tensor:
    """Rows of a mask `[B, L, C]` moved to the row that produces their token; none in the last."""
    return torch.cat([kept[:, 1:], torch.full_like(kept[:, :1], -1)], dim=1)


def _shift(x: Tensor, place: Tensor) -> Tensor:
    """Values of the row that produced a token moved to that token: 0 at position 0 and on padding."""
    moved = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
    return torch.where(place >= 0, moved, 0.0)
