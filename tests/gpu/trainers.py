"""What the tests of the trainer run in processes of their own; torchtitan is imported there and nowhere else."""

import tempfile
from dataclasses import replace
from pathlib import Path

from firstorder.backends.tasks import sums

ROWS, LENGTH, PROMPT = 8, 48, 16


def opened(folder, scratch, recipe="minirl-r3", **settings):
    from firstorder.backends.torchtitan.config import Torchtitan
    from firstorder.backends.torchtitan.trainer import Trainer
    from firstorder.core.method.recipe import Recipe
    from firstorder.core.settings import toml

    titan = Torchtitan(model=str(folder), pack_length=128, **settings)
    return Trainer(titan, toml.build(Recipe, toml.read(recipe)), 1.0, Path(scratch))


def responses():
    """Two responses to a row, of different lengths."""
    import torch

    from firstorder.core.training.batch import RolloutBatch

    g = torch.Generator().manual_seed(0)
    lengths = torch.tensor([LENGTH, LENGTH - 7] * (ROWS // 2))
    at = torch.arange(LENGTH)
    return RolloutBatch(
        tokens=torch.randint(2, len(sums.TOKENS), (ROWS, LENGTH), generator=g).where(at < lengths[:, None], 0),
        mask=(at >= PROMPT) & (at < lengths[:, None]),
        lengths=lengths,
        logp_mu=torch.zeros(ROWS, LENGTH, dtype=torch.float64),
        rewards=torch.rand(ROWS, generator=g, dtype=torch.float64),
        groups=torch.arange(ROWS) // 4,
    )


def step(trainer, batch, scores, routes):
    """One update."""
    from firstorder.core.routing import Replay
    from firstorder.core.training.arms import Arm, RecipeWeights, with_advantages
    from firstorder.core.training.backend import Scored

    arms, logp = (Arm(recipe=trainer.recipe),), scores.logp.where(batch.mask, 0.0)
    replay = None if routes is None else Replay(ids=routes)
    held = Scored(batch=replace(batch, logp_mu=logp), logp_old=logp, replay=replay)
    return trainer.update(with_advantages(held, arms, 4), RecipeWeights(arms))


def weights(trainer):
    return {name: w.clone() for name, w in trainer.weights()}


def same(one, other):
    import torch

    return all(torch.equal(one[name], other[name]) for name in one)


def replayed(folder, **settings):
    """Whether replaying its own routes changes a bit of a model's scores, other routes are taken, and an update moves.

    An update is not compared with one that routes live: attention with and without a gradient is compiled apart on a
    GPU, so an update need not route as the pass that scored.
    """
    import torch

    from firstorder.core.routing import Replay

    batch = responses()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = opened(folder, scratch, **settings)
        before, live = weights(trainer), trainer.score(batch)
        own = trainer.score(batch, Replay(ids=live.routes))
        others = torch.where(live.routes >= 0, (live.routes + 1) % trainer.shape.num_experts, live.routes)
        other = trainer.score(batch, Replay(ids=others))
        did = step(trainer, batch, live, live.routes)
        return {
            "same scores": torch.equal(own.logp, live.logp) and torch.equal(own.routes, live.routes),
            "other routes taken": torch.equal(other.routes, others),
            "other scores": not torch.equal(other.logp, live.logp),
            "a gradient": 0.0 < did.grad_norm < float("inf"),
            "moved": not same(before, weights(trainer)),
        }


def compiled(folder, backend="inductor"):
    """With the same routes, how far scores in bfloat16 are from those in float32, compiled and not; and gradients."""
    from firstorder.core.routing import Replay

    kinds = {"plain": {}, "compiled": {"compile": backend}}
    batch = responses()
    with tempfile.TemporaryDirectory() as scratch:
        exact = opened(folder, scratch, dtype="float32").score(batch)
        trainers = {name: opened(folder, scratch, dtype="bfloat16", **kind) for name, kind in kinds.items()}
    scores = {name: trainer.score(batch, Replay(ids=exact.routes)) for name, trainer in trainers.items()}
    return {
        name: {
            "apart": float((scores[name].logp - exact.logp).abs()[batch.mask].mean()),
            "routes": (scores[name].routes == exact.routes).all().item(),
            "gradient": step(trainer, batch, scores[name], exact.routes).grad_norm,
        }
        for name, trainer in trainers.items()
    }


def resumed(folder, **settings):
    """Whether an update after a checkpoint is the one that was made before it was loaded, bit for bit."""
    batch = responses()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = opened(folder, scratch, **settings)
        step(trainer, batch, trainer.score(batch), None)
        trainer.save(1)
        saved = weights(trainer)
        step(trainer, batch, trainer.score(batch), None)
        fresh = opened(folder, scratch, **settings)
        fresh.load(1)
        loaded = weights(fresh)
        step(fresh, batch, fresh.score(batch), None)
        return same(loaded, saved), same(weights(fresh), weights(trainer)), not same(weights(fresh), saved)


def scores(folder, **settings):
    """Where the model lies, and log-probs and routes of the responses."""
    batch = responses()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = opened(folder, scratch, **settings)
        found = trainer.score(batch)
        where = {parameter.device.type for parameter in trainer.model.parameters()}
    return where, found.logp[batch.mask].tolist(), found.routes[batch.mask].tolist()


def out_of_memory(folder):
    """What is said when a micro-batch does not fit, here because the process may have no more than it holds."""
    import torch

    from firstorder.backends.torchtitan.memory import MicrobatchMemoryError

    batch = responses()
    many = batch.tokens.repeat(16, 1), batch.lengths.repeat(16), batch.mask.repeat(16, 1)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = opened(folder, scratch, microbatch_rows=64)
        trainer.supervise(*many)  # kernels are compiled, which takes memory too
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / whole)
        try:
            trainer.supervise(*many)
        except MicrobatchMemoryError as error:
            return str(error)
    return "it fitted"


def peak(shape, settings, recipe):
    """Bytes that an update allocates."""
    from firstorder.backends.torchtitan import dryrun

    return dryrun.measure(shape, settings, recipe)
