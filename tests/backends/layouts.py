"""Run by torchrun: score and update a fixed batch, and say on the first rank what came out."""

import json
import sys
from pathlib import Path

import torch

from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.core import toml
from firstorder.core.arms import Arm, Weigher, with_advantages
from firstorder.core.backend import Scored
from firstorder.core.batch import RolloutBatch
from firstorder.core.diagnostics import means
from firstorder.core.recipe import Recipe

torch.set_num_threads(1)


def batch_of(experts):
    g = torch.Generator().manual_seed(3)
    lengths = torch.tensor([24, 7, 15, 9, 22, 11, 18, 5, 24, 6])
    tokens, position = torch.randint(2, 32, (10, 24), generator=g), torch.arange(24)
    mask = (position >= 3) & (position < lengths[:, None])
    first = torch.randint(0, experts, (10, 24, 4, 1), generator=g)
    routes = torch.cat([first, (first + 3) % experts], dim=-1)
    run = (position < (lengths - 1)[:, None])[..., None, None]
    return RolloutBatch(
        tokens=torch.where(position < lengths[:, None], tokens, 0),
        mask=mask,
        lengths=lengths,
        logp_mu=torch.where(mask, -3.0 + 0.1 * torch.randn(10, 24, generator=g).double(), 0.0),
        rewards=torch.rand(10, generator=g, dtype=torch.float64),
        groups=torch.arange(10) // 5,
        routes=torch.where(run, routes, -1).to(torch.int16),
    )


def main():
    folder, checkpoints, recipe, changes = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    settings = toml.override({"model": folder, "dtype": "float32", "pack_length": 32, "microbatch_rows": 1}, changes)
    recipe = toml.build(Recipe, toml.override(toml.read(recipe), ["optimizer.lr=0.01"]))
    trainer = Trainer(Torchtitan(**settings), recipe, 1.0, checkpoints)
    batch, arms = batch_of(8), (Arm(recipe=recipe),)
    live = trainer.score(batch)
    replay = {"disabled": None, "R2": live.routes, "R3": batch.routes}[recipe.router_replay.mode]
    old = trainer.score(batch, replay).logp.where(batch.mask, 0.0)
    scored = with_advantages(Scored(batch=batch, logp_old=old, replay=replay), arms, 5)
    weigh = Weigher(arms)
    steps = [trainer.update(scored, weigh) for _ in range(3)]
    trainer.save(1)
    after = trainer.score(batch, replay)
    weights = {name: float(w.double().norm()) for name, w in trainer.weights()}
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        found = {
            "loss": [s.loss for s in steps],
            "grad_norm": [s.grad_norm for s in steps],
            "logp": after.logp.tolist(),
            "routes": live.routes.sort(-1).values.tolist(),
            "receipts": {name: float(value) for name, value in means(weigh.receipts).items()},
            "weights": weights,
        }
        (checkpoints / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


main()
