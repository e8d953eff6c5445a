"""The training engine: scores responses and takes optimiser steps, with torchtitan's model, optimizer and checkpoints.

Shapes: B responses of L positions, R packed rows of P, M MoE layers, K experts a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from firstorder.backends.folder import read_shape
from firstorder.core.backend import Scored, Weigh, take
from firstorder.core.batch import RolloutBatch
from firstorder.core.errors import ConfigError, DataError
from firstorder.core.recipe import Optimizer, Recipe
from firstorder.core.surrogate import surrogate_loss

from . import adapter, model
from .config import Torchtitan
from .packing import Packed, chunks, pack
from .replay import recording, replaying

CHECKPOINTS = "torchtitan"  # folder of the distributed checkpoints in that of the run


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Responses under π: `logp` `[B, L]` nats of each token given those before it, `entropy` `[B, L]` nats of the
    distribution it was drawn from (both 0 at position 0 and on padding), `routes` int16 `[B, L, M, K]` (-1 in the
    row of the last token and beyond) and `margin` `[B, L, M]` of the live choice."""

    logp: Tensor
    entropy: Tensor
    routes: Tensor
    margin: Tensor


@dataclass(frozen=True, kw_only=True)
class Update:
    """What an optimiser step did."""

    loss: float
    grad_norm: float


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
        self.shape = read_shape(source)
        world = adapter.start_process_group()
        parallelism, dims = model.layout(settings, world)
        self.settings, self.recipe, self.temperature, self._dims = settings, recipe, temperature, dims
        self.model = model.build(self.shape, settings, parallelism, dims)
        self.names = model.HuggingFace(model.model_config(self.shape, settings.pack_length), self.model)
        self.names.read(source)
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

    def score(self, batch: RolloutBatch, replay: Tensor | None = None) -> Scores:
        """Score responses without gradient, recording the routes of every token that was run."""
        found = []
        with torch.no_grad():
            for rows in self._chunks(batch.lengths):
                packed = pack(batch.tokens[rows], batch.lengths[rows], self.settings.pack_length)
                ids = None if replay is None else packed.rows(replay[rows], -1)
                with replaying(self.model, ids), recording(self.model) as record:
                    logp, entropy = self._forward(packed, batch.tokens[rows])
                assert record.ids is not None
                assert record.margin is not None
                routes = packed.batch(record.ids.to(torch.int16), -1)
                run = torch.arange(batch.tokens.shape[-1]) < (batch.lengths[rows] - 1)[:, None]
                routes = torch.where(run[..., None, None], routes, -1)
                margin = packed.batch(record.margin, 0.0).double()
                found.append(Scores(logp=logp, entropy=entropy, routes=routes, margin=margin))
        return Scores(**{name: torch.cat([vars(one)[name] for one in found]) for name in vars(found[0])})

    def update(self, minibatch: Scored, weigh: Weigh) -> Update:
        """One optimiser step along Σ w ∇ log π_θ.

        Weights that read no further than their token are formed inside the micro-batches; the others need log π_θ of
        the whole mini-batch first.
        """
        batch, size = minibatch.batch, minibatch.logp_old.shape[-2]
        weight = None
        if self.recipe.weight_scope != "token":
            weight = weigh(minibatch.stats(self.score(batch, minibatch.replay).logp.where(batch.mask, 0.0)))
        self.optimizer.zero_grad()
        total = 0.0
        for rows in self._chunks(batch.lengths):
            piece = take(minibatch, rows)
            tokens = piece.batch.tokens
            packed = pack(tokens, piece.batch.lengths, self.settings.pack_length)
            ids = None if piece.replay is None else packed.rows(piece.replay, -1)
            with replaying(self.model, ids):
                logp = self._forward(packed, tokens)[0].where(piece.batch.mask, 0.0)
                stats = piece.stats(logp)
                own = weigh(stats) if weight is None else weight[rows]
                loss = surrogate_loss(stats, own) * (len(tokens) / size)
                torch.autograd.backward(loss)
            total += float(loss.detach())
        return Update(loss=total, grad_norm=self._step())

    def supervise(self, tokens: Tensor, lengths: Tensor, mask: Tensor) -> Update:
        """One optimiser step on the mean negative log-likelihood of the tokens of `mask`."""
        self.optimizer.zero_grad()
        total, count = 0.0, mask.sum()
        for rows in self._chunks(lengths):
            packed = pack(tokens[rows], lengths[rows], self.settings.pack_length)
            loss = -self._forward(packed, tokens[rows])[0][mask[rows]].sum() / count
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return Update(loss=total, grad_norm=self._step())

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every weight, under the names of Hugging Face."""
        return self.names.weights()

    def save(self, step: int) -> None:
        """Write the distributed checkpoint from which step `step` follows."""
        self.checkpoints.save(step)

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

    def _chunks(self, lengths: Tensor) -> list[slice]:
        return chunks(lengths, self.settings.pack_length, self.settings.microbatch_rows)

    def _forward(self, packed: Packed, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """log π of each token given those before it and the entropy of its distribution, float64 `[B, L]`."""
        following = torch.where(packed.place[:, 1:] >= 0, tokens[:, 1:], adapter.IGNORE_INDEX)
        ending = torch.full_like(tokens[:, :1], adapter.IGNORE_INDEX)
        labels = packed.rows(torch.cat([following, ending], dim=1), adapter.IGNORE_INDEX)
        masks = adapter.attention_masks(self.model, packed.positions)
        logits = self.model(packed.tokens, positions=packed.positions, attention_masks=masks)
        logp, entropy = adapter.compute_logprobs(logits / self.temperature, labels, return_entropy=True)
        shifted = (_shift(packed.batch(x.double(), 0.0), packed.place) for x in (logp, entropy))
        return next(shifted), next(shifted)

    def _step(self) -> float:
        norm = adapter.dist_utils.clip_grad_norm_(
            self.model.parameters(), self.recipe.optimizer.max_grad_norm, ep_enabled=self._dims.ep_enabled
        )
        if not torch.isfinite(norm):
            raise DataError("the gradient is not finite; lower optimizer.lr or bound the ratio with correction or clip")
        self.optimizer.step()
        self.rate.step()
        return float(norm)


def optimizer(section: Optimizer, trained: Any) -> Any:
    """torchtitan's optimizer container for a recipe's section.

    Raises:
        ConfigError: it is none of torchtitan's optimizers.
    """
    if section.kind != "adamw":
        raise ConfigError(f"optimizer.kind = {section.kind} is not one of torchtitan's; set optimizer.kind = adamw")
    config = adapter.default_adamw(
        lr=section.lr, betas=section.betas, eps=section.eps, weight_decay=section.weight_decay
    )
    config.implementation = "foreach" if adapter.ON_CPU else "fused"
    return config.build(model_parts=[trained])


def learning_rate(warmup: int, updates: int, of: Any) -> Any:
    """torchtitan's schedule of an optimizer: linear warm-up, then constant."""
    config = adapter.LRSchedulersContainer.Config(warmup_steps=warmup, decay_ratio=0.0)
    return config.build(optimizers=of, training_steps=updates)


def _shift(x: Tensor, place: Tensor) -> Tensor:
    """Values of the row that produced a token moved to that token: 0 at position 0 and on padding."""
    moved = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
    return torch.where(place >= 0, moved, 0.0)
