"""What replay did in a step of training is in its receipts, and a replay that did not take place stops the run."""

import contextlib
import dataclasses

import pytest
import torch

from firstorder.backends.pair import EnginePair, RunSettings
from firstorder.backends.torchtitan import adapter, replay, trainer
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.weights import open_weights
from firstorder.core.errors import ReplayError
from firstorder.core.method.recipe import Recipe
from firstorder.core.routing import Replay, flips
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm
from firstorder.core.training.batch import RolloutBatch
from firstorder.core.training.loop import train


@pytest.fixture(scope="module")
def engines(shape, write_model, tmp_path_factory):
    """A training engine, and a backend around it whose rollouts are one fixed batch with routes of another engine."""
    folder = write_model(tmp_path_factory.mktemp("model"), shape)
    settings = Torchtitan(model=str(folder), dtype="float32", pack_length=32, microbatch_rows=2)
    held = trainer.Trainer(settings, Recipe(), 1.0, tmp_path_factory.mktemp("checkpoints"))
    g = torch.Generator().manual_seed(3)
    lengths = torch.tensor([24, 7, 15, 9, 22, 11, 18, 5])
    position = torch.arange(24)
    held_out = position < lengths[:, None]
    blank = {"logp_mu": torch.zeros(8, 24, dtype=torch.float64), "rewards": torch.rand(8, generator=g).double()}
    batch = RolloutBatch(
        tokens=torch.where(held_out, torch.randint(2, 32, (8, 24), generator=g), 0),
        mask=held_out & (position >= 3),
        lengths=lengths,
        groups=torch.arange(8) // 4,
        **blank,
    )
    live = held.score(batch)
    flipped = torch.rand(8, 24, shape.num_hidden_layers, generator=g) < 0.2
    mu = torch.where(flipped[..., None] & (live.routes >= 0), (live.routes + 1) % shape.num_experts, live.routes)
    batch = dataclasses.replace(batch, logp_mu=live.logp.where(batch.mask, 0.0).clamp(max=0.0), routes=mu)
    return held, batch, folder


def trained_once(engines, name, *more, n=1):
    """The receipts of a step of a recipe."""
    held, batch, folder = engines
    settings = ["schedule.steps=1", "schedule.prompts=2", "schedule.group_size=4", f"schedule.minibatches={n}", *more]
    recipe = toml.build(Recipe, toml.override(toml.read(name), settings))
    held.recipe, held.optimizer = recipe, trainer.optimizer(recipe.optimizer, held.model)
    held.rate = trainer.learning_rate(0, n, held.optimizer)
    held.names.read(open_weights(folder, held.shape))
    run = RunSettings(
        recipe=recipe, seed=0, evaluate_every=0, evaluate_prompts=1, probe_prompts=1, probe_limit=1.0, longest=9
    )
    pair, logs = EnginePair(held, type("Engine", (), {"emulated": False}), None, run), []
    pair.rollout, pair.sync_weights = lambda step: batch, lambda: None
    train((Arm(recipe=recipe),), pair, on_step=logs.append)
    return {key: float(value) for key, value in logs[0].receipts.items()}


def test_a_step_records_what_replay_did(engines, shape):
    batch, layers = engines[1], range(shape.num_hidden_layers)
    rows = float((batch.lengths - 1).sum())
    found = {name: trained_once(engines, name) for name in ("minirl", "minirl-r2", "minirl-r3")}
    for name, acted in found.items():
        on = float(name != "minirl")
        assert (acted["replay/rows_replayed"], acted["replay/rows_live"]) == (on, 1 - on)
        assert acted["replay/rows_padded"] == pytest.approx(1 - rows / (8 * 24))
        assert (acted["replay/routes_arrived"], acted["replay/routes_missing"]) == (1.0, 0.0)
        assert acted["inert/router_replay"] == float(name == "minirl-r2")
        for layer in layers:
            assert acted[f"replay/rows_replayed_layer_{layer}"] == on
            assert (acted[f"replay/rows_changed_layer_{layer}"] > 0) == (name == "minirl-r3")
    engines[0].names.read(open_weights(engines[2], shape))
    apart = flips(engines[0].score(batch).routes, batch.routes)[:, :, 0].sum()  # above layer 0 the contexts part ways
    assert found["minirl-r3"]["replay/rows_changed_layer_0"] == pytest.approx(float(apart) / rows)
    moved = trained_once(engines, "minirl-r2", "optimizer.lr=0.05", n=2)
    assert moved["replay/rows_changed"] > 0
    assert moved["inert/router_replay"] == 0


def not_replaying(patch, engines):
    """Replay that is switched off on the way to the model."""
    patch.setattr(trainer, "replaying", lambda model, ids: contextlib.nullcontext())


def unpatched(patch, engines):
    """One router that is torchtitan's own again, in updates."""
    layer, stock = replay.routers(engines[0].model)[1], adapter.TokenChoiceTopKRouter.forward
    own = layer.forward
    patch.setattr(layer, "forward", lambda x, bias=None: (own if layer.recording else stock.__get__(layer))(x, bias))


def dropped(patch, engines):
    """Routes that do not come from the rollout engine to the trainer."""
    real = EnginePair.score

    def score(self, batch):
        return real(self, dataclasses.replace(batch, routes=torch.full_like(batch.routes, -1)))

    patch.setattr(EnginePair, "score", score)


def mistaken(patch, engines):
    """R2's routes under the flag of R3."""
    real = EnginePair.score

    def score(self, batch):
        scored, found = real(self, batch)
        return dataclasses.replace(scored, replay=Replay(ids=self.trainer.score(batch).routes)), found

    patch.setattr(EnginePair, "score", score)


FAULTS = {
    "off": (
        not_replaying,
        ("R2", "R3"),
        "0 were replayed, with rows lost in all 4 MoE layers; was a router replaced",
    ),
    "a router unpatched": (unpatched, ("R2", "R3"), "with rows lost in MoE layer 1; was a router replaced"),
    "routes dropped": (
        dropped,
        ("R3",),
        "no rows were given to replay in all 4 MoE layers; the routes of the rollout engine",
    ),
    "wrong routes": (mistaken, ("R3",), "none changed the router's choice, though the engines' routes differ at"),
}


@pytest.mark.parametrize(("fault", "mode"), [(name, mode) for name, fault in FAULTS.items() for mode in fault[1]])
def test_replay_that_does_not_take_place_stops_the_run(fault, mode, engines, monkeypatch):
    inject, _, said = FAULTS[fault]
    inject(monkeypatch, engines)
    with pytest.raises(ReplayError) as raised:
        trained_once(engines, f"minirl-{mode.lower()}", n=2)
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"router_replay.mode = {mode} is on, ")
    assert (raised.value.code, str(raised.value).count("\n")) == (1, 0)
