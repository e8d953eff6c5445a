"""A fixed batch scored and trained on in several layouts, one after the other; run by torchrun for several ranks."""

import sys
from pathlib import Path

import torch

from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.core.method.recipe import Recipe
from firstorder.core.quantities import means
from firstorder.core.routing import Replay, replay_of
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm, RecipeWeights, with_advantages
from firstorder.core.training.backend import Scored
from firstorder.core.training.batch import RolloutBatch
from firstorder.core.training.replay import rules

CONDITION = "minirl-r3-condition optimizer.lr=1e-6"  # a step of 0.01 has rounding decide which experts stay
ALONE = {name: [name] for name in ("minirl-r3", "gspo", "total-recall", CONDITION, "minirl-r3+terms")}
TWO = {
    "fsdp": ["minirl-r3"],
    "expert-parallel": ["minirl-r3", "expert=2", "loss_chunks=4", "activation_checkpoint=full"],
    "sequence-scope": ["gspo", "expert=2"],
    "tensor-parallel": ["minirl-r3", "tensor=2", "expert=2", "loss_chunks=3", "activation_checkpoint=full"],
    "tensor-parallel-live": ["gspo", "tensor=2", "expert=2"],
    "terms": ["minirl-r3+terms", "tensor=2", "expert=2", "loss_chunks=3"],
}
"""Recipe and settings of each layout, by name; those of gspo on a batch that was sampled from some tokens only."""


def batch_of(experts, *, truncated=False):
    g = torch.Generator().manual_seed(3)
    lengths = torch.tensor([24, 7, 15, 9, 22, 11, 18, 5, 24, 6])
    tokens, position = torch.randint(2, 32, (10, 24), generator=g), torch.arange(24)
    mask = (position >= 3) & (position < lengths[:, None])
    first = torch.randint(0, experts, (10, 24, 4, 1), generator=g)
    routes = torch.cat([first, (first + 3) % experts], dim=-1)
    run = (position < (lengths - 1)[:, None])[..., None, None]
    others = (tokens[..., None] + torch.tensor([0, 5, 9, 13])) % 32
    kept = torch.where(mask[..., None] & (torch.arange(4) < 1 + tokens[..., None] % 4), others, -1).int()
    return RolloutBatch(
        tokens=torch.where(position < lengths[:, None], tokens, 0),
        mask=mask,
        lengths=lengths,
        logp_mu=torch.where(mask, -3.0 + 0.1 * torch.randn(10, 24, generator=g).double(), 0.0),
        rewards=torch.rand(10, generator=g, dtype=torch.float64),
        groups=torch.arange(10) // 5,
        routes=torch.where(run, routes, -1).to(torch.int16),
        gates=torch.rand(routes.shape, generator=g).softmax(-1),
        kept=kept if truncated else None,
    )


def gradients(trainer):
    """The whole gradient of every parameter, by name."""
    found = {}
    for name, p in trainer.model.named_parameters():
        found[name.replace("_checkpoint_wrapped_module.", "")] = p.grad.full_tensor().clone()
    return found


def one(folder, out, recipe, *changes):
    """What a layout makes of the batch; the same on every rank."""
    settings = toml.override(
        {"model": str(folder), "dtype": "float32", "pack_length": 32, "microbatch_rows": 1}, changes
    )
    plain, _, tag = recipe.partition("+")
    name, *more = plain.split()
    kl = ["terms.reference_kl=0.5", "terms.reference_estimator=unbiased"]
    more += [*kl, "terms.entropy=0.2", "terms.squared_log_ratio=0.001"] if tag else []
    recipe = toml.build(Recipe, toml.override(toml.read(name), ["optimizer.lr=0.01", *more]))
    made = Torchtitan(**settings), recipe, 1.0, out
    trainer = Trainer(*made)
    batch, arms = batch_of(8, truncated=recipe.about.name == "gspo"), (Arm(recipe=recipe),)
    live = trainer.score(batch, gates=True)
    ids = replay_of(recipe.router_replay.mode, live.routes, batch.routes)
    gates = batch.gates if recipe.router_replay.gates == "replayed" else None
    replay = None if ids is None else Replay(ids=ids, gates=gates, **rules([recipe.router_replay]))
    old = trainer.score(batch, replay)
    logp_old = old.logp.where(batch.mask, 0.0)
    logp_ref = trainer.score_reference(batch, replay).where(batch.mask, 0.0) if terms else None
    scored = with_advantages(Scored(batch=batch, logp_old=logp_old, replay=replay, logp_ref=logp_ref), arms, 5)
    weight_fn = RecipeWeights(arms)
    steps = [trainer.update(scored, weight_fn)]
    grads = gradients(trainer)
    steps += [trainer.update(scored, weight_fn) for _ in range(2)]
    receipts = {name: float(value) for name, value in means(weight_fn.receipts).items()}
    trainer.save(1)
    again = Trainer(*made)
    again.load(1)
    return {
        "loss": [s.loss for s in steps],
        "grad_norm": [s.grad_norm for s in steps],
        "entropy": old.entropy,
        "outside": old.outside,
        "margin": live.margin,
        "gates": live.gates.sort(-1).values,
        "gradients": grads,
        "logp": again.score(batch, replay).logp,
        "routes": live.routes.sort(-1).values,
        "receipts": receipts,
        "rows": steps[0].rows,
        "weights": {name: float(w.double().norm()) for name, w in again.weights()},
        "goes_on": [vars(one.update(scored, weight_fn)) for one in (trainer, again)],
    }


def main():
    torch.set_num_threads(1)
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    found = {name: one(folder, out / name, *words) for name, words in TWO.items()}
    if torch.distributed.get_rank() == 0:
        torch.save(found, out / "found.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
