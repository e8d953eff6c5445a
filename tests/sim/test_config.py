import pytest
import torch

from firstorder.core.errors import ConfigError
from firstorder.core.settings import toml
from firstorder.sim.checks import check_replay
from firstorder.sim.config import Sim
from firstorder.sim.exact.scene import grow
from firstorder.sim.tasks import TASKS, task_of
from firstorder.sim.tasks.task import rows

CHAIN = {"task": "chain"}
ANSWER = {"task": "chain", "ending": "answer", "positions": 4}


def make(**values):
    return toml.build(Sim, values, "sim")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": 10}, "sim.prompts = 10 but only 9 prompts of sim.prompt_length = 2 exist over 3 tokens"),
        ({"prompts": 9, "staleness": 1}, "moves theta on prompts other than those measured"),
        ({"training_numerics": {"kind": "batch"}}, "the target must be a function of the prefix"),
        ({"top_k": 9}, "top_k must be at most experts = 8, got 9"),
        ({"router": "top1"}, "router top1 takes one expert, got top_k = 2"),
        ({"router": "group_limited", "experts": 9}, "group_limited needs groups"),
        ({"prompt_length": 30}, "lower sim.prompt_length"),
        ({"prompt_length": 20_000}, r"sim.prompt_length: must lie in \[1, 32\], got 20000; prompts are a table"),
        ({"numerics": {"kind": "gate_order"}, "router": "sigmoid_bias"}, "sim.numerics.kind = gate_order"),
        ({"numerics": {"kind": "gate_order"}, "router": "top1", "top_k": 1}, "sim.numerics.kind = gate_order"),
        ({"training_numerics": {"kind": "gate_order"}, "router": "group_limited"}, "sim.training_numerics.kind"),
        ({"vocab": 1}, "sim.vocab"),
        ({"pool": 10}, "at most the 9 prompts of sim.prompt_length = 2 over 3 tokens; raise sim.prompt_length or"),
        ({"pool": 3}, "sim.pool = 3 must hold the sim.prompts = 4 measured ones .*; raise sim.pool"),
        ({"task": "gues"}, "sim.task"),
        ({"task": "guess", "vocab": 3}, "answers with tokens 1 to 3, got sim.vocab = 3; raise it to 4"),
        ({"task": "guess", "turn_length": 6}, "sim.turn_length = 6 is more than sim.horizon = 5"),
        ({"turn_length": 0}, "sim.turn_length"),
        ({"coldstart": "rambling"}, "sim.coldstart"),
        ({"coldstart_share": 0.0}, "sim.coldstart_share"),
        ({"coldstart_share": 1.1}, "sim.coldstart_share"),
        ({"coldstart_steps": 0}, "sim.coldstart_steps"),
        ({"coldstart_lr": float("inf")}, "sim.coldstart_lr"),
        ({"temperature": 0.0}, "sim.temperature"),
        ({"lr": float("nan")}, "sim.lr"),
        ({"draws": 1}, "sim.draws"),
        ({"coldstart": "calibrated"}, "teaches the contexts of sim.task = chain, got sum; use terse, verbose or"),
        (CHAIN | {"coldstart": "terse"}, "draws demonstrations that end, of which sim.task = chain has none; use cali"),
        (CHAIN | {"coldstart_value": 1.0}, "sim.coldstart_value"),
        (CHAIN | {"right": 4}, "need 4 tokens and one that is wrong, but sim.vocab = 4 has 4 to say; raise it to 5"),
        (ANSWER | {"right": 3}, "need 3 tokens and one that is wrong, but sim.vocab = 4 has 3 to say; raise it to 5"),
        (ANSWER | {"thinking": 2, "recovery": 1, "feedback": True}, "need 6 tokens .* raise it to 8"),
        (CHAIN | {"thinking": 1}, "sim.thinking = 1 would earn everything by thinking for ever.*use sim.ending = ans"),
        (CHAIN | {"reward": "graded"}, "sim.reward = graded pays for answers, but sim.ending = horizon cuts every"),
        (CHAIN | {"truncated": "zero"}, "sim.truncated = zero pays nothing for a response that is cut, but sim.ending"),
        (CHAIN | {"feedback": True, "turn_length": 6}, "sim.turn_length = 6 is more than sim.horizon = 5"),
        (CHAIN | {"feedback": True, "vocab": 2}, "sim.feedback says token 1 or 2, got sim.vocab = 2; raise it to 3"),
        (ANSWER | {"horizon": 3}, "answers at the last of sim.positions = 4, so nothing is earned; raise sim.hor"),
        (CHAIN | {"pool": 3}, "sim.pool = 3 must hold the sim.prompts = 4 measured ones; raise sim.pool"),
        ({"horizn": 3}, "unknown key 'sim.horizn'; did you mean 'horizon'"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_a_remedy(values, message):
    with pytest.raises(ConfigError, match=message):
        make(**values)


def test_a_pool_is_as_large_as_asked_or_as_it_can_be():
    assert Sim().training_prompts == 9
    assert Sim(vocab=9).training_prompts == 64
    assert Sim(vocab=11, prompts=70).training_prompts == 70
    assert Sim(vocab=9, prompt_length=4, pool=4096).training_prompts == 4096


def test_a_chain_trains_on_what_is_measured_and_moves_theta_on_other_problems():
    assert Sim(task="chain", prompts=3, staleness=1).training_prompts == 3
    measured, others = rows(Sim(task="chain", prompts=3))
    assert (measured.tolist(), others.tolist()) == ([0, 1, 2], [3, 4, 5])
    assert [len(r) for r in rows(Sim(task="chain", prompts=3, pool=3))] == [3, 3]
    assert Sim(task="chain", prompts=3, pool=8).training_prompts == Sim(task="chain", prompts=3, pool=8).available == 8


def test_a_task_has_its_own_kind_of_reward_unless_told():
    assert [task for task in TASKS if not Sim(task=task).graded] == ["sum", "chain"]
    for task in TASKS:
        sim = Sim(task=task, ending="answer", positions=3)
        assert toml.build(Sim, sim.model_dump() | {"reward": "graded"}).graded
        assert not toml.build(Sim, sim.model_dump() | {"reward": "binary"}).graded


@pytest.mark.parametrize("mode", ["R2", "R3"])
def test_replay_on_a_dense_model_is_refused(mode, make_recipe):
    recipe = make_recipe("minirl", f"router_replay.mode={mode}")
    with pytest.raises(ConfigError, match=f"router_replay.mode = {mode} can never act .*a dense model"):
        check_replay(recipe, Sim(experts=4, top_k=4))
    check_replay(recipe, Sim(experts=4, top_k=3))
    check_replay(make_recipe("minirl"), Sim(experts=4, top_k=4))


def test_prompts_measured_and_prompts_that_move_theta_are_disjoint_and_fixed():
    def prompts(sim):
        return [task_of(sim).prompts(chosen).tokens for chosen in rows(sim)]

    measured, others = prompts(Sim(prompts=4))
    found = {tuple(row) for row in torch.cat([measured, others]).tolist()}
    assert len(found) == 8
    assert all(1 <= token <= 3 for row in found for token in row)
    again, _ = prompts(Sim(prompts=4, seed=7, horizon=2))
    assert torch.equal(measured, again)
    larger, rest = prompts(Sim(prompts=6))
    assert torch.equal(larger[:4], measured)
    assert len(rest) == 3


@pytest.mark.parametrize("truncated", ["scored", "zero"])
@pytest.mark.parametrize("kind", ["binary", "graded"])
@pytest.mark.parametrize("vocab", [2, 3, 4, 5])
def test_rewards_lie_between_zero_and_one_and_follow_the_rule(vocab, kind, truncated):
    sim = Sim(vocab=vocab, horizon=3, prompts=1, reward=kind, truncated=truncated)
    tree = grow(sim)
    rewards, every = tree.every.rewards, tree.every
    assert ((rewards >= 0) & (rewards <= 1)).all()
    for row, got in enumerate(rewards.tolist()):
        gap = (int(every.tokens[row].sum()) - int(tree.opening[0].sum())) % vocab
        distance = min(gap, vocab - gap)
        expected = float(gap == 0) if kind == "binary" else 1 - distance / (vocab // 2)
        cut = int(every.tokens[row, every.lengths[row] - 1]) != 0
        assert got == (0.0 if truncated == "zero" and cut else expected)
