"""Training runs: each member as if alone."""

import json
import re

import pytest
import torch
from training_runs import SIM, logs_of, recipe, train_command

from firstorder.cli.main import run
from firstorder.core.errors import ConfigError, NotFiniteError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.surrogate import token_weights
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm, with_advantages
from firstorder.core.training.loop import train
from firstorder.sim import optimizer
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.scene import engines
from firstorder.sim.model.policy import load, unflatten
from firstorder.sim.sampling.sequences import score
from firstorder.sim.tasks import Sum
from firstorder.sim.training.backend import SimBackend
from firstorder.sim.training.session import SimRun

NAMES = ("minirl", "minirl-critic", "minirl-r2", "minirl-r3", "ppo-critic", "grpo", "gspo", "dapo")


def trained(arms, seeds, sim=SIM):
    logs = []
    backend = SimBackend(sim, arms, torch.tensor(seeds))
    train(arms, backend, on_step=logs.append)
    return backend, logs


def test_every_member_of_an_ensemble_is_the_run_alone():
    arms = tuple(Arm(recipe=recipe(name), members=2) for name in NAMES)
    together, logs = trained(arms, [5, 6] * len(NAMES))
    for place, (name, seed) in enumerate((n, s) for n in NAMES for s in (5, 6)):
        alone, single = trained((Arm(recipe=recipe(name), members=1),), [seed])
        for key, weight in alone.weights.items():
            torch.testing.assert_close(together.weights[key][place], weight[0], rtol=1e-9, atol=1e-11)
        for a, b in zip(logs, single, strict=True):
            for key, value in b.metrics.items():
                torch.testing.assert_close(a.metrics[key][place], value[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("change", [{"task": "guess", "coldstart": "terse"}, {"task": "program", "horizon": 5}])
def test_a_member_of_any_task_is_the_run_alone(change):
    sim = Sim(**(SIM.model_dump() | {"coldstart_steps": 3, "coldstart": "roundabout"} | change))
    arms = tuple(Arm(recipe=recipe(name, "schedule.steps=2"), members=1) for name in ("minirl-r3", "gspo"))
    together, logs = trained(arms, [5, 6], sim)
    for place, arm in enumerate(arms):
        alone, single = trained((arm,), [5 + place], sim)
        for key, weight in alone.weights.items():
            torch.testing.assert_close(together.weights[key][place], weight[0], rtol=1e-9, atol=1e-11)
        for a, b in zip(logs, single, strict=True):
            for key, value in b.metrics.items():
                torch.testing.assert_close(a.metrics[key][place], value[0], rtol=1e-8, atol=1e-10)


def test_what_an_environment_says_is_in_the_batch_and_counts_for_nothing():
    sim = Sim(**(SIM.model_dump() | {"task": "guess", "horizon": 4, "turn_length": 2}))
    backend = SimBackend(sim, (Arm(recipe=recipe("minirl-r3"), members=1),), torch.tensor([5]))
    batch = backend.rollout(0)
    scored, agreement = backend.score(batch)
    answer = batch.tokens[..., 4]
    heard = batch.lengths > 4
    assert heard.any()
    assert ((answer > 0) == heard).all()
    assert not batch.mask[..., 4].any()
    assert not batch.logp_mu[..., 4].any()
    assert not scored.logp_old[..., 4].any()
    assert (scored.replay.ids[:, :, 4][heard] >= 0).all()  # it is run, routed and replayed
    assert float(agreement["update/entropy"][1]) == float(batch.mask.sum())


def test_a_pool_of_4096_prompts_is_sampled_and_a_few_of_them_are_evaluated():
    sim = Sim(**(SIM.model_dump() | {"vocab": 9, "prompt_length": 4, "pool": 4096, "horizon": 2}))
    backend, logs = trained((Arm(recipe=recipe("minirl", "schedule.prompts=64"), members=2),), [5, 6], sim)
    seen = backend.rollout(0).groups
    assert len(seen[0].unique()) == 64
    assert int(seen.max()) > 3000
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(backend.task.prompts(seen).tokens, backend.rollout(0).tokens[..., :4])
    assert "exact/j_pi" in logs[-1].metrics


def test_a_baseline_over_too_many_levels_is_refused_before_the_run(capsys, tmp_path):
    long = [
        "--set",
        "sim.task=text",
        "--set",
        "sim.horizon=6",
        "--set",
        "sim.vocab=4",
        "--set",
        "schedule.group_size=16",
    ]
    assert run(train_command(tmp_path / "a", *long)) == 2
    err = capsys.readouterr().err
    assert "reward levels and schedule.group_size = 16" in err
    assert "lower schedule.group_size to 8 or set sim.reward = binary, or set sim.evaluate_every=0 to train" in err
    assert "or set sim.evaluate_every=0 to train without" in err
    assert not (tmp_path / "a").exists()
    few = ["--set", "sim.evaluate_every=0", "--set", "schedule.steps=1"]
    assert run(train_command(tmp_path / "a", *long, *few)) == 0


def test_a_cold_started_run_is_resumed_bit_for_bit(tmp_path):
    cold = ["sim.task=guess", "sim.vocab=4", "sim.coldstart=terse", "sim.coldstart_steps=3", "schedule.steps=6"]
    more = [x for s in cold for x in ("--set", s)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(train_command(whole, *more)) == run(train_command(cut, *more)) == 0
    (cut / "checkpoints" / "step-0000006.pt").unlink()
    assert run(train_command(cut, *more, "--resume")) == 0
    assert logs_of(cut) == logs_of(whole)


def test_recipes_part_ways_once_theta_has_moved():
    arms = tuple(Arm(recipe=recipe(name), members=1) for name in NAMES)
    backend, _ = trained(arms, [5] * len(NAMES))
    heads = [w.flatten() for w in backend.weights["head"]]
    assert all(not torch.equal(a, b) for i, a in enumerate(heads) for b in heads[:i])


def test_the_first_update_moves_along_the_sampled_mean_of_the_weighted_scores():
    """Plain SGD: θ' - θ = lr · mean over responses of Σ w ∇log π, by finite differences of the loss."""
    method = recipe(
        "minirl-r3",
        "optimizer.kind=sgd",
        "optimizer.max_grad_norm=inf",
        "schedule.minibatches=1",
        "schedule.steps=1",
    )
    arms = (Arm(recipe=method, members=1),)
    before = SimBackend(SIM, arms, torch.tensor([5]))
    after, _ = trained(arms, [5])
    moved = optimizer_vector(after) - optimizer_vector(before)
    batch = before.rollout(0)
    scored, _ = before.score(batch)
    stats = with_advantages(scored, arms, 4).stats(scored.logp_old)
    weight = token_weights(stats, method).weight

    def objective(step):
        probe = SimBackend(SIM, arms, torch.tensor([5]))
        probe.weights = unflatten(optimizer_vector(before) + step * moved, probe.weights)
        return float((weight * probe.score(batch)[0].logp_old).sum() / batch.rewards.shape[-1])

    slope = (objective(1e-4) - objective(-1e-4)) / 2e-4
    assert slope == pytest.approx(float(moved.square().sum()) / 0.01, rel=1e-5)


def optimizer_vector(backend):
    return backend._vector()


def test_the_ensemble_optimiser_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    gradients = torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
    sections = [
        recipe("minirl", "optimizer.weight_decay=0.1").optimizer,
        recipe("minirl", "optimizer.kind=sgd").optimizer,
    ]
    settings, state, vector = optimizer.settings(sections), optimizer.start(start), start
    theirs = [start[i].clone().requires_grad_() for i in range(2)]
    adamw, sgd = (
        torch.optim.AdamW([theirs[0]], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1),
        torch.optim.SGD([theirs[1]], lr=0.01),
    )
    for gradient in gradients:
        clipped, norm = optimizer.clip(gradient, settings)
        vector, state = optimizer.step(vector, clipped, state, settings)
        for i, each in enumerate((adamw, sgd)):
            theirs[i].grad = gradient[i].clone()
            expected = torch.nn.utils.clip_grad_norm_([theirs[i]], 1.0)
            torch.testing.assert_close(norm[i], expected)
            each.step()
    torch.testing.assert_close(vector, torch.stack(theirs).detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (
            float("nan"),
            "`rewards` must be finite, got 1 that is not, the first nan at [0, 2]; check the verifier of the task",
        ),
        (
            float("inf"),
            "`rewards` must be finite, got 1 that is not, the first inf at [0, 2]; check the verifier of the task",
        ),
        (1.5, "`rewards` must lie in [0, 1], got 1.5; check the verifier of the task"),
        (-1.0, "`rewards` must lie in [0, 1], got -1; check the verifier of the task"),
    ],
)
def test_a_reward_that_cannot_be_stops_the_run_and_loses_nothing(reward, said, tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    shorter = ["--set", "schedule.steps=8"]
    assert run(train_command(whole, *shorter)) == 0
    real, seen = Sum.verify, []

    def spoiled(task, episodes):
        rewards = real(task, episodes)
        if rewards.ndim == 1:  # the responses of the tree
            return rewards
        seen.append(1)
        return rewards.index_fill(-1, torch.tensor([2]), reward) if len(seen) == 6 else rewards

    monkeypatch.setattr(Sum, "verify", spoiled)
    assert run(train_command(stopped, *shorter)) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"firstorder: {said}"
    assert len((stopped / "metrics.jsonl").read_text().splitlines()) == 5
    assert run(train_command(stopped, *shorter, "--resume")) == 0
    assert logs_of(stopped) == logs_of(whole)


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_remedy(tmp_path, capsys):
    method = recipe("minirl", "optimizer.kind=sgd", "optimizer.max_grad_norm=inf")
    # what the range of optimizer.lr refuses
    wild = method.model_copy(update={"optimizer": method.optimizer.model_copy(update={"lr": 1e300})})
    session = SimRun(recipe=wild, sim=SIM).prepare(tmp_path / "a")
    # weights of 1e300 overflow in the forward pass or in its gradient, which depends on the processor's kernels
    seen = r"(`logp_theta` must be .*, the first nan .*|the gradient is not finite;)"
    with pytest.raises(NotFiniteError, match=rf"step 0: {seen} lower optimizer.lr or bound .* no che"):
        session.run()
    assert not (tmp_path / "a" / "metrics.jsonl").exists()


def test_a_run_whose_weights_turn_infinite_names_the_step_and_the_newest_checkpoint(tmp_path, monkeypatch, capsys):
    real, count = optimizer.step, []

    def overflow(parameters, *rest):
        found, state = real(parameters, *rest)
        count.append(1)
        return (found / 0.0 if len(count) == 3 else found), state

    monkeypatch.setattr(optimizer, "step", overflow)
    settings = ("--set", "schedule.steps=4", "--set", "sim.checkpoint_every=2", "--set", "schedule.minibatches=1")
    assert run(train_command(tmp_path / "a", *settings)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        "firstorder: step 2: the weights are not finite after an update; lower optimizer.lr; the newest checkpoint "
        f"before it is {tmp_path / 'a' / 'checkpoints' / 'step-0000002.pt'}"
    )
    assert len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_learning_rate_that_saturates_the_policy_ends_the_run(tmp_path, capsys):
    assert run(train_command(tmp_path / "a", "--set", "optimizer.lr=100")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("firstorder: step ")
    assert re.search(r"exact/\w+ is (nan|inf): the policy diverges or is saturated; lower optimizer.lr", said)


def test_a_cold_start_that_diverges_names_its_learning_rate(monkeypatch):
    monkeypatch.setattr(optimizer, "step", lambda vector, gradient, state, s: (vector * float("nan"), state))
    with pytest.raises(NotFiniteError, match=r"not finite after the cold start; lower sim\.coldstart_lr"):
        starting_weights(Sim(coldstart="terse", coldstart_steps=1, vocab=3, horizon=3, seed=77), torch.tensor([77]))


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("schedule.minibatches=3", "must be a multiple of schedule.minibatches = 3"),
        ("schedule.minibatches=0", "schedule.minibatches: must lie in [1, 1048576], got 0"),
        ("schedule.group_size=1", "needs schedule.group_size >= 2, got 1"),
        ("schedule.group_size=2.5", "schedule.group_size: input should be a valid integer"),
        ("schedule.prompts=0", "schedule.prompts: must lie in [1, 1048576], got 0"),
    ],
)
def test_a_schedule_that_does_not_divide_is_refused_before_anything_is_written(setting, remedy, capsys, tmp_path):
    assert run(train_command(tmp_path / "a", "--set", setting)) == 2
    said = capsys.readouterr().err
    assert remedy in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_responses_too_many_to_enumerate_are_trained_without_exact_evaluations(capsys, tmp_path):
    long = ["--set", "sim.vocab=6", "--set", "sim.horizon=20", "--set", "schedule.steps=2"]
    assert run(train_command(tmp_path / "a", *long)) == 2
    assert "or set sim.evaluate_every=0 to train without" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert run(train_command(tmp_path / "a", *long, "--set", "sim.evaluate_every=0")) == 0
    assert "exact/j_pi" not in (tmp_path / "a" / "metrics.jsonl").read_text()


WIDE = ("trm", "trm-avg", "rspo")  # they read whole distributions or the router


@pytest.mark.parametrize("name", WIDE)
def test_a_weight_that_rollouts_cannot_feed_is_refused_before_the_run(name, capsys, tmp_path):
    assert run(["train", name, "--out", str(tmp_path / "a")]) == 2
    assert "see `firstorder measure` for it" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", [n for n in toml.shipped() if n not in (*WIDE, "pr2")])
def test_every_other_shipped_recipe_trains(name):
    _, logs = trained((Arm(recipe=recipe(name, "schedule.steps=1"), members=1),), [5])
    assert all(torch.isfinite(value).all() for value in logs[-1].metrics.values())


def test_an_engine_that_depends_on_its_batch_is_another_one_at_every_step():
    sim = SIM.model_copy(update={"numerics": Numerics(kind="batch")})
    backend = SimBackend(sim, (Arm(recipe=recipe("minirl"), members=1),), torch.tensor([5]))
    tokens = backend.rollout(0).tokens
    first, again, later = (score(load(backend.weights, backend._rollout_arithmetic(s), sim), tokens) for s in (0, 0, 1))
    assert torch.equal(first.logp, again.logp)
    assert not torch.equal(first.logp, later.logp)


def test_exact_evaluations_are_those_of_a_measurement_at_the_same_weights():
    method = recipe("minirl-r3", "schedule.steps=1")
    sim = SIM.model_copy(update={"staleness": 0, "seed": 5})
    backend = SimBackend(sim, (Arm(recipe=method, members=2),), torch.tensor([5, 6]))
    found, expected = backend.evaluate(0), measure(method, sim)
    for name in ("value_error", "replay_bias", "gradient_error", "gradient_error_natural", "j_mu"):
        assert found[f"exact/{name}"].shape == (2,)
    # a measurement draws its engine's noise from member 0, a run from its own seed: give both the same
    backend.engines = engines(sim, torch.tensor([0, 0]))
    found = backend.evaluate(0)
    for name in ("value_error", "replay_bias", "gradient_error", "gradient_error_natural", "j_mu"):
        assert float(found[f"exact/{name}"][0]) == pytest.approx(expected[name], rel=1e-9, abs=1e-15)
    assert float(found["exact/j_pi"][0]) == pytest.approx(expected["j_seq_natural"], rel=1e-12)


def test_strict_refuses_parts_that_cannot_act(capsys, tmp_path):
    assert run(train_command(tmp_path / "a", "--strict")) == 2
    assert "--strict: clip.kind = minirl: theta equals theta_old" in capsys.readouterr().err


def test_recipes_of_an_ensemble_share_a_schedule():
    arms = (Arm(recipe=recipe("minirl"), members=1), Arm(recipe=recipe("grpo", "schedule.steps=9"), members=1))
    with pytest.raises(ConfigError, match="must share one schedule"):
        trained(arms, [1, 1])


def test_training_raises_the_exact_reward():
    method = recipe(
        "minirl-r3", "schedule.steps=40", "schedule.prompts=6", "schedule.group_size=16", "schedule.minibatches=1"
    )
    _, logs = trained((Arm(recipe=method, members=4),), [1, 2, 3, 4])
    first, last = logs[1].metrics["exact/j_pi"], logs[-1].metrics["exact/j_pi"]
    assert (last > first + 0.1).all()


def test_a_run_folder_holds_one_object_a_step(tmp_path):
    assert run(train_command(tmp_path / "a", "--set", "sim.members=2")) == 0
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(30))
    assert all(len(row["reward"]) == 2 for row in rows)
    assert toml.build(Recipe, {k: v for k, v in toml.read(str(tmp_path / "a" / "config.toml")).items() if k != "sim"})
