"""What a learned value does to the expected update, exactly; and the critic that learns it."""

import math

import pytest
import torch

from firstorder.core.errors import ConfigError, NotFiniteError
from firstorder.core.method.recipe import Advantage, Recipe, Schedule
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import train
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.advantages import advantage_table
from firstorder.sim.exact.fit import compare
from firstorder.sim.exact.forward import states
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.measurement import token_stats, update
from firstorder.sim.exact.scene import MODES, build, engines, grow
from firstorder.sim.exact.world import gather, gather_contexts
from firstorder.sim.model.policy import initial_weights, load
from firstorder.sim.sampling.sequences import score
from firstorder.sim.training import critic
from firstorder.sim.training.backend import SimBackend
from firstorder.sim.training.session import SimRun, check_baseline

RTOL = 1e-10
# eq. (4): the token ratio and the reward, no clip, nothing truncated
TOKEN = ("clip.kind=none", "about.scope=token")


@pytest.fixture(scope="module")
def stale(small, make_scene):
    return make_scene(small(staleness=2, lr=1.0, horizon=4))


@pytest.fixture(scope="module")
def valued(make_recipe):
    """eq. (4) with a critic in place of the reward."""

    def make(lam, mode="disabled", *more):
        changes = (*TOKEN, f"advantage.gae_lambda={lam}", f"router_replay.mode={mode}", *more)
        return make_recipe("minirl-critic", *changes)

    return make


@pytest.fixture(scope="module")
def token_gradient(make_recipe):
    """∇J_token, from rewards alone."""

    def of(scene, mode):
        plain = make_recipe("minirl-critic", *TOKEN, "advantage.baseline=none", f"router_replay.mode={mode}")
        return update(scene, plain)[0]

    return of


def any_values(scene, seed=0):
    """A value of every context that has nothing to do with the reward."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, scene.world.contexts, generator=g, dtype=torch.float64)


def perfect(scene):
    return objectives.state_values(scene.mu_old.logp, scene.world)


def ratios(scene, mode):
    """ρ_t of every token, `[B, T]`."""
    both = gather(scene.target[mode].logp.detach(), scene.responses), gather(scene.mu_old.logp, scene.responses)
    return (both[0] - both[1]).exp()[0]


@pytest.mark.parametrize("changes", [{}, {"reward": "graded", "vocab": 4}, {"truncated": "zero", "seed": 3}])
def test_the_value_of_a_context_is_the_mean_reward_of_what_follows(changes, small, make_lab, make_scene, pairs_of):
    sim = small(**changes)
    lab, scene = make_lab(sim), make_scene(sim)
    held = gather_contexts(perfect(scene), scene.responses)[0]
    for row, (prompt, response) in enumerate(pairs_of(scene.world)):
        expected = [lab.value(prompt, response[:t]) for t in range(len(response))]
        assert held[row, : len(response)].tolist() == pytest.approx(expected, rel=1e-12)


def test_a_context_that_is_never_reached_has_no_value(stale):
    never = torch.full_like(stale.mu_old.logp, -math.inf)
    never[..., 0] = 0.0  # every response ends at once
    found = objectives.state_values(never, stale.world)[0]
    first = stale.world.widths[0]
    assert torch.equal(found[:first], stale.responses.rewards[stale.responses.mask.sum(-1) == 1])
    assert (found[first:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_at_lambda_one_any_value_leaves_the_gradient_of_the_token_objective(mode, stale, valued, token_gradient, same):
    for seed in range(3):
        same(update(stale, valued(1.0, mode), any_values(stale, seed))[0], token_gradient(stale, mode), RTOL)


@pytest.mark.parametrize(
    "breaks",
    [
        ("clip.kind=minirl", "clip.low=0.05", "clip.high=0.05"),
        ("correction.kind=truncate", "correction.high=1.05"),
        ("ratio.of=theta/old",),
        ("ratio.of=none",),
        ("aggregation.kind=length",),
    ],
    ids=lambda changes: changes[0],
)
def test_a_mask_a_truncation_a_missing_factor_or_a_length_lets_the_value_in(breaks, stale, valued):
    recipe = valued(1.0, "disabled", *breaks)
    one, other = (update(stale, recipe, any_values(stale, seed)) for seed in (0, 1))
    assert float((one - other).norm()) > 1e-3 * float(one.norm())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95])
def test_below_one_the_value_of_the_rollout_policy_leaves_it_too(mode, lam, stale, valued, token_gradient, same):
    expected = token_gradient(stale, mode)
    same(update(stale, valued(lam, mode), perfect(stale))[0], expected, RTOL)
    same(update(stale, valued(lam, mode))[0], expected, RTOL)  # what a measurement assumes
    target = objectives.state_values(stale.target[mode].logp.detach(), stale.world)
    off = update(stale, valued(lam, mode), target)[0] - expected
    assert float(off.norm()) > 1e-3 * float(expected.norm())  # the value of π is not that of μ


def test_at_lambda_zero_a_perfect_value_gives_the_advantage_of_every_token(stale, valued, same):
    plus, minus = advantage_table(stale, valued(0.0)).of(stale)
    tree, v = stale.world, perfect(stale)
    # Q^μ(c, y) from the responses that take the edge, V^μ(c) from those that reach the context
    edge = tree.path.long()
    taken = torch.zeros(2, tree.contexts * tree.vocab, dtype=torch.float64)
    for row in range(len(edge)):
        for t in range(int(stale.responses.lengths[row])):
            taken[:, edge[row, t]] += stale.measure[0, row] * torch.tensor([1.0, stale.responses.rewards[row]])
    q = (taken[1] / taken[0])[edge]
    same((plus - minus)[0][tree.mask], (q - v[0][edge // tree.vocab])[tree.mask], 1e-9)


def test_the_spread_of_an_advantage_grows_with_lambda_as_its_residuals_are_uncorrelated(stale, valued):
    """E[Σ_t A_t²] = Σ_l λ^{2l} E[Σ_t d_{t+l}²] under a perfect value."""

    def second_moment(lam):
        plus, minus = advantage_table(stale, valued(lam)).of(stale)
        return (stale.measure[..., None] * (plus - minus).square()).sum((0, 1))

    by_token, horizon = second_moment(0.0).tolist(), stale.world.horizon  # E d_t² of each token
    for lam in (0.3, 0.9, 1.0):
        expected = sum(lam ** (2 * (late - t)) * by_token[late] for t in range(horizon) for late in range(t, horizon))
        assert float(second_moment(lam).sum()) == pytest.approx(expected, rel=1e-11)


def bias(scene, mode, lam, error):
    """(1 - λ) E_μ[Σ_t ρ_t (Σ_{l≥1} λ^(l-1) e(c_{t+l})) ∇log π(y_t)], e 0 past the last token; over plain numbers."""
    rho, e = ratios(scene, mode), gather_contexts(error, scene.responses)[0]
    weight = torch.zeros(1, *rho.shape, dtype=torch.float64)
    for row, length in enumerate(scene.responses.lengths.tolist()):
        for t in range(length):
            ahead = sum(lam**i * float(e[row, t + 1 + i]) for i in range(length - t - 1))
            weight[0, row, t] = scene.measure[0, row] * rho[row, t] * (1 - lam) * ahead
    return objectives.direction(scene, mode, weight)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lam", [0.0, 0.6, 0.95, 1.0])
def test_the_error_of_a_value_enters_the_update_by_its_formula(mode, lam, stale, valued, token_gradient, same):
    error = any_values(stale)
    found = update(stale, valued(lam, mode), perfect(stale) + error)[0]
    expected = bias(stale, mode, lam, error)
    same(found, token_gradient(stale, mode) + expected, RTOL)
    assert (float(expected.norm()) == 0) == (lam == 1)


@pytest.mark.parametrize("mode", MODES)
def test_the_target_s_own_value_at_lambda_zero_closes_one_half_of_the_gap_and_a_prefix_ratio_the_other(
    mode, stale, valued, token_gradient, same
):
    """A_t = Q^π - V^π stands where eq. (4) has Q^μ; with Π_{s≤t} ρ_s for ρ_t nothing is left."""
    rho, g = ratios(stale, mode), objectives.gradient(stale, mode)[0]
    own = objectives.state_values(stale.target[mode].logp.detach(), stale.world)
    future = torch.flip(torch.flip(torch.where(stale.responses.mask, rho, 1.0), [1]).cumprod(1), [1]) / rho
    weight = (
        stale.measure[..., None]
        * stale.responses.rewards[:, None]
        * torch.where(stale.responses.mask, rho * (future - 1), 0.0)
    )
    half = objectives.direction(stale, mode, weight)[0]
    found = update(stale, valued(0.0, mode), own)[0]
    same(found, token_gradient(stale, mode) + half, 1e-9)
    assert float(half.norm()) > 1e-3 * float(g.norm())
    prefix = valued(0.0, mode, "ratio.span=prefix", "about.scope=sequence")
    same(update(stale, prefix, own)[0], g, 1e-9)


def test_the_bias_is_of_first_order_in_the_error_and_stays_where_the_engines_agree(small, make_scene, valued, same):
    scene = make_scene(small(numerics={"kind": "exact"}))
    assert (ratios(scene, "disabled")[scene.responses.mask] == 1).all()
    error, g = any_values(scene), objectives.gradient(scene, "disabled")[0]

    def off(scale):
        return update(scene, valued(0.5), perfect(scene) + scale * error)[0] - g

    same(off(1e-3), 1e-3 * off(1.0), 1e-8)
    assert float(off(0.1).norm()) > 1e-2 * float(g.norm())


def test_an_optimistic_value_rewards_tokens_that_go_on(stale, valued, token_gradient, same):
    """The same error e everywhere is e (1 - λ^(|y| - t)) more for token t: nothing for the last, most for the first."""
    lam, lengths = 0.7, stale.responses.lengths
    left = (lengths[:, None] - 1 - torch.arange(stale.world.horizon)).clamp(min=0).double()
    weight = stale.measure[..., None] * ratios(stale, "disabled") * 0.2 * (1 - lam**left)
    found = update(stale, valued(lam), perfect(stale) + 0.2)[0] - token_gradient(stale, "disabled")
    same(found, objectives.direction(stale, "disabled", weight)[0], 1e-9)
    # a step along it makes responses longer: the derivative of E_π|y| is positive
    longer = stale.probability("disabled") * lengths
    slope = objectives.direction(stale, "disabled", longer[..., None].expand(-1, -1, stale.world.horizon))[0]
    assert float(found @ slope) > 0


def test_a_perfect_critic_measures_without_bias_and_with_less_variance(small, make_recipe):
    sim = small(numerics={"kind": "exact"})
    found = {}
    for lam in (0.0, 0.5, 1.0):
        result = measure(make_recipe("minirl-critic", f"advantage.gae_lambda={lam}"), sim)
        assert result["gradient_error_raw"] == pytest.approx(0.0, abs=1e-12)
        assert any("the critic is perfect" in note for note in result["notes"])
        found[lam] = result["variance"]
    bare = measure(make_recipe("minirl", "advantage.baseline=none", "about.scope=token"), sim)["variance"]
    assert found[0.0] < found[0.5] < found[1.0] < bare


def test_a_critic_is_scored_token_by_token(stale, make_recipe):
    """The clip reads the sign of each token's own advantage, so a response can be cut on both sides."""
    stats = token_stats(stale, make_recipe("ppo-critic"))
    plus, minus = advantage_table(stale, make_recipe("ppo-critic")).of(stale)
    assert plus.shape == stats.logp_theta.shape
    assert ((plus > 0).any(-1) & (minus > 0).any(-1)).any()


SIM = Sim(vocab=4, horizon=3, prompts=6, pool=6, width=8, expert_width=8, evaluate_every=0)
SETTINGS = ["schedule.steps=4", "schedule.prompts=6", "schedule.group_size=8", "optimizer.lr=0.01"]


def recipe(name, *more):
    critics = ["critic.lr=0.05"] if name.endswith("-critic") else []
    return toml.build(Recipe, toml.override(toml.read(name), [*SETTINGS, *critics, *more]))


def trained(arms, seeds, sim=SIM):
    logs, backend = [], SimBackend(sim, arms, torch.tensor(seeds))
    train(arms, backend, on_step=logs.append)
    return backend, logs


def test_the_state_on_a_sampled_token_is_that_of_its_context_on_the_tree(stale, small):
    """Values on the training path and in exact evaluations are those of the same contexts."""
    sim, tree, every = small(staleness=2, lr=1.0, horizon=4), stale.world, stale.responses
    model = load(stale.weights, stale.pi, sim)
    tokens = torch.cat([tree.opening[every.prompt], every.tokens], dim=1)
    sampled = score(model, tokens[None]).state[:, :, sim.prompt_length :]
    on_tree = states(model, tree)[:, tree.path.long() // tree.vocab]
    assert sampled.shape == on_tree.shape
    assert not sampled.requires_grad
    assert torch.allclose(sampled[:, tree.mask], on_tree[:, tree.mask], rtol=1e-12, atol=1e-13)


def test_a_critic_that_knows_nothing_decays_the_reward_along_the_response(make_scene, same):
    """With V = 0, A_t = λ^(|y| - t) R: what the exact evaluation of the first step must find."""
    method = recipe("minirl-critic", "advantage.gae_lambda=0.5")
    sim = SIM.model_copy(update={"evaluate_every": 1, "seed": 5})
    backend = SimBackend(sim, (Arm(recipe=method, members=1),), torch.tensor([5]))
    backend.engines = engines(sim, torch.tensor([0]))  # the noise of `make_scene`
    scene = make_scene(sim)
    left = (scene.responses.lengths[:, None] - 1 - torch.arange(sim.horizon)).clamp(min=0).double()
    weight = scene.measure[..., None] * ratios(scene, "disabled") * scene.responses.rewards[:, None] * 0.5**left
    fit = compare(objectives.direction(scene, "disabled", weight), objectives.gradient(scene, "disabled"))
    same(backend.evaluate(0)["exact/gradient_error"], fit.error, 1e-9)
    blunt = compare(update(scene, method), objectives.gradient(scene, "disabled")).error
    assert float(fit.error) > float(blunt) + 0.01


@pytest.mark.parametrize("mode", ["disabled", "R3"])
def test_exact_evaluations_judge_the_critic_that_is_being_trained(mode, make_scene, same):
    method = recipe("minirl-critic", "advantage.gae_lambda=0.5", f"router_replay.mode={mode}", "schedule.steps=2")
    sim = SIM.model_copy(update={"evaluate_every": 1})
    arms = (Arm(recipe=recipe("minirl", "schedule.steps=2"), members=1), Arm(recipe=method, members=2))
    backend, logs = trained(arms, [3, 3, 4], sim)
    _, single = trained((Arm(recipe=method, members=1),), [4], sim)
    same(logs[-1].metrics["exact/gradient_error"][2:], single[-1].metrics["exact/gradient_error"], 1e-8)
    before = backend.evaluate(2)["exact/gradient_error"]
    backend.critic = critic.load(backend.critic, critic.state(backend.critic) | {"phi": 0 * backend.critic.phi})
    after = backend.evaluate(2)["exact/gradient_error"]
    assert float(before[0]) == float(after[0])
    assert ((before - after).abs()[1:] > 1e-4).all()


def test_members_without_a_critic_log_none_and_those_with_one_as_if_alone(same):
    names = ("grpo", "ppo-critic", "minirl", "minirl-critic")
    arms = tuple(Arm(recipe=recipe(name, "schedule.minibatches=2"), members=2) for name in names)
    together, logs = trained(arms, [5, 6] * 4)
    assert together.critic.members.tolist() == [2, 3, 6, 7]
    for name in ("critic/vf_loss", "critic/vf_explained_var"):
        assert logs[-1].metrics[name].isnan().tolist() == [True, True, False, False] * 2
    for place, (arm, seed) in enumerate((arm, seed) for arm in (arms[1], arms[3]) for seed in (5, 6)):
        alone, _ = trained((Arm(recipe=arm.recipe, members=1),), [seed])
        same(together.critic.phi[place], alone.critic.phi[0], 1e-9)
    _, without = trained((Arm(recipe=recipe("grpo"), members=1),), [5])
    assert not any(name.startswith("critic/") for name in without[-1].metrics)


def test_the_value_loss_does_not_move_the_policy():
    """One update from equal values: whatever the critic learns from it, the policy is the same."""
    slow, fast = (
        trained((Arm(recipe=recipe("ppo-critic", "schedule.steps=1", f"critic.lr={lr}"), members=1),), [5])[0]
        for lr in (1e-6, 1.0)
    )
    assert all(torch.equal(slow.weights[name], fast.weights[name]) for name in slow.weights)
    assert not torch.equal(slow.critic.phi, fast.critic.phi)


def test_the_first_step_of_the_critic_goes_down_its_value_loss(same):
    """Plain SGD from V = 0 at λ = 1: φ moves by lr times the mean of R · (state, 1) over response tokens."""
    more = ("schedule.steps=1", "critic.kind=sgd", "critic.max_grad_norm=inf", "critic.lr=0.5")
    arms = (Arm(recipe=recipe("minirl-critic", *more), members=1),)
    backend, _ = trained(arms, [5])
    fresh = SimBackend(SIM, arms, torch.tensor([5]))
    batch = fresh.rollout(0)
    state = score(load(initial_weights(SIM, torch.tensor([5])), fresh.engines.pi, SIM), batch.tokens).state
    seen = torch.cat([state.flatten(-2), torch.ones_like(state[..., :1, 0])], dim=-1)[batch.mask]
    earned = batch.rewards[..., None].expand(batch.mask.shape)[batch.mask]
    same(backend.critic.phi[0], 0.5 * (earned[:, None] * seen).mean(0), 1e-10)


def test_a_critic_of_a_policy_that_stays_comes_near_the_best_linear_value():
    """Variance of V^μ explained on every context, beside that of the least-squares head on the same states."""
    more = ("optimizer.lr=1e-12", "schedule.steps=60", "schedule.group_size=32", "critic.lr=0.03")
    backend, _ = trained((Arm(recipe=recipe("minirl-critic", *more), members=2),), [0, 1])
    scene = build(SIM, grow(SIM), backend.engines, backend.weights, modes=[])
    v, weight = perfect(scene), scene.world.visits(scene.mu_old.logp.exp())
    weight = weight / weight.sum(-1, keepdim=True)
    state = states(load(backend.weights, backend.engines.pi, SIM), scene.world)
    seen = torch.cat([state.flatten(2), torch.ones_like(state[..., :1, 0])], dim=-1)
    root = weight.sqrt()[..., None]
    best = (seen @ torch.linalg.lstsq(root * seen, root * v[..., None]).solution)[..., 0]
    spread = (weight * v.square()).sum(-1) - (weight * v).sum(-1).square()

    def explained(found):
        return 1 - (weight * (found - v).square()).sum(-1) / spread

    limit = explained(best)
    assert ((limit > 0.4) & (limit < 1)).all()
    assert (explained(critic.value(backend.critic.phi, state)) > 0.5 * limit).all()


def test_training_with_a_critic_raises_the_reward_and_comes_to_explain_it():
    """Four policies each: the reward of the first five steps and of the last five."""
    more = ("optimizer.lr=0.003", "schedule.steps=40", "schedule.group_size=16", "schedule.minibatches=2")
    arms = tuple(Arm(recipe=recipe(name, *more), members=4) for name in ("minirl-critic", "ppo-critic"))
    _, logs = trained(arms, [0, 1, 2, 3] * 2)
    reward = torch.stack([log.metrics["reward"] for log in logs]).view(40, 2, 4)
    rise = reward[-5:].mean(0) - reward[:5].mean(0)
    assert (rise > 0.2).all()
    assert (rise.mean(-1) > 0.35).all()
    explained = torch.stack([log.metrics["critic/vf_explained_var"] for log in logs])
    assert (explained[0].abs() < 1e-12).all()  # V = 0 before the first step
    assert (explained[10:].mean(0) > 0).all()


def test_a_resumed_critic_goes_on_bit_for_bit(tmp_path):
    method, sim = recipe("ppo-critic"), SIM.model_copy(update={"checkpoint_every": 2, "members": 2})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        SimRun(recipe=method, sim=sim).prepare(folder).run()
    (cut / "checkpoints" / "step-0000004.pt").unlink()
    again = SimRun(recipe=method, sim=sim).prepare(cut, resume=True)
    assert again.first == 2
    again.run()
    last = [
        torch.load(f / "checkpoints" / "step-0000004.pt", weights_only=True)["state"]["critic"] for f in (whole, cut)
    ]
    assert torch.equal(last[0]["phi"], last[1]["phi"])
    assert last[0]["optimizer"]["steps"] == last[1]["optimizer"]["steps"] == 4
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()


def test_a_critic_that_diverges_stops_the_run():
    method = recipe("minirl-critic", "critic.kind=sgd", "critic.max_grad_norm=inf", "schedule.minibatches=6")
    # what the range of critic.lr refuses
    wild = method.model_copy(update={"critic": method.critic.model_copy(update={"lr": 1e200})})
    with pytest.raises(NotFiniteError, match=r"critic is not finite after an update; lower critic\.lr"):
        trained((Arm(recipe=wild, members=1),), [5])


def test_a_critic_reads_no_group_and_is_trained_at_any_size_of_one():
    sim, large = Sim(reward="graded"), Schedule(group_size=1024)
    check_baseline(Recipe(advantage=Advantage(baseline="value"), schedule=large), sim)
    with pytest.raises(ConfigError, match=r"schedule\.group_size = 1024 sums"):
        check_baseline(Recipe(advantage=Advantage(baseline="group_mean"), schedule=large), sim)
