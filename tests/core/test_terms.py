import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firstorder.core.errors import ConfigError, DataError
from firstorder.core.method import terms
from firstorder.core.method.recipe import Recipe, fingerprint
from firstorder.core.method.stats import TokenStats, UnreadStats
from firstorder.core.method.term_kinds import ESTIMATORS, TERMS
from firstorder.core.training.arms import Arm, RecipeWeights, bonus_weights
from firstorder.core.training.inert import inert_by_part
from firstorder.core.training.inside import Method

SAMPLED = ("k1", "k2", "k3", "unbiased")
NORMS = ({"kind": "token_sum"}, {"kind": "length"}, {"kind": "token_mean"}, {"kind": "constant", "constant": 3.0})
LOSSES = {  # as they are published, of log π_θ, log π_ref and log μ
    "k1": lambda p, q, m: p - q,
    "k2": lambda p, q, m: 0.5 * (p - q) ** 2,
    "k3": lambda p, q, m: torch.exp(q - p) - (q - p) - 1,
    "unbiased": lambda p, q, m: torch.exp(p - m) * (torch.exp(q - p) - (q - p) - 1),
}


def recipe_of(**section):
    return Recipe(terms=section)


def batch(seed=0, **changes):
    draw = torch.Generator().manual_seed(seed)
    logs = [-2 * torch.rand(3, 5, generator=draw, dtype=torch.float64) for _ in range(4)]
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 1, 0, 1, 1]]).bool()
    fields = dict(zip(("logp_theta", "logp_old", "logp_mu", "logp_ref"), logs, strict=True))
    return TokenStats(**fields | {"mask": mask, "advantage": torch.tensor([1.0, -1.0, 0.5]).double()} | changes)


def distributions(seed=0, size=6):
    """log π_θ with gradient, log π_ref and log μ of the tokens of one context."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, size, generator=draw, dtype=torch.float64)
    theta = logits[0].requires_grad_()
    return theta, theta.log_softmax(-1), logits[1].log_softmax(-1), logits[2].log_softmax(-1)


def every_token(p, q, m):
    """Every token of a context as a response, as often as m says."""
    shape = {name: x.detach()[:, None] for name, x in (("logp_theta", p), ("logp_old", p), ("logp_mu", m))}
    return TokenStats(
        **shape,
        logp_ref=q[:, None],
        mask=torch.ones(len(p), 1, dtype=torch.bool),
        advantage=torch.zeros(len(p)).double(),
        measure=m.exp(),
    )


def slope_of(estimator, theta, p, q, m):
    """E_m[s ∇ log π], by the logits."""
    s = terms.slopes(every_token(p, q, m), recipe_of(reference_kl=1.0, reference_estimator=estimator))["reference_kl"]
    return torch.autograd.grad((m.exp() * s[:, 0] * p).sum(), theta, retain_graph=True)[0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("estimator", SAMPLED)
def test_a_term_of_the_weight_has_the_gradient_of_the_published_loss(estimator, norm):
    recipe = Recipe(terms={"reference_kl": 0.7, "reference_estimator": estimator}, aggregation=norm)
    stats = batch()
    theta = stats.logp_theta.clone().requires_grad_()
    loss = LOSSES[estimator](theta, stats.logp_ref, stats.logp_mu)
    lengths = stats.mask.sum(-1).double()
    divisor = {"token_sum": 1.0, "length": lengths[:, None], "token_mean": lengths.mean(), "constant": 3.0}[
        norm["kind"]
    ]
    expected = torch.autograd.grad(0.7 * (torch.where(stats.mask, loss, 0.0) / divisor).sum(-1).mean(), theta)[0]
    found = terms.term_weights(stats, recipe)["reference_kl"] / len(lengths)
    torch.testing.assert_close(-found, expected, rtol=1e-12, atol=1e-14)
    assert not found[~stats.mask].any()


@pytest.mark.parametrize("of", ["theta/mu", "theta/old"])
def test_the_squared_log_ratio_has_the_gradient_of_its_square(of):
    stats = batch(1)
    theta = stats.logp_theta.clone().requires_grad_()
    below = stats.logp_mu if of == "theta/mu" else stats.logp_old
    expected = torch.autograd.grad((0.3 * (theta - below) ** 2)[stats.mask].sum(), theta)[0]
    found = terms.term_weights(stats, recipe_of(squared_log_ratio=0.3, squared_of=of))["squared_log_ratio"]
    torch.testing.assert_close(-found, expected, rtol=1e-12, atol=1e-14)


@given(st.integers(0, 1000))
def test_on_policy_k1_restrains_nothing_k2_has_the_reverse_kl_and_k3_the_forward_one(seed):
    theta, p, q, _ = distributions(seed)
    reverse = torch.autograd.grad((p.exp() * (p - q)).sum(), theta, retain_graph=True)[0]
    forward = torch.autograd.grad((q.exp() * (q - p)).sum(), theta, retain_graph=True)[0]
    on = p.detach()
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(slope_of("k1", theta, p, q, on), torch.zeros_like(theta), **close)
    torch.testing.assert_close(slope_of("k2", theta, p, q, on), reverse, **close)
    torch.testing.assert_close(slope_of("unbiased", theta, p, q, on), reverse, **close)
    torch.testing.assert_close(slope_of("k3", theta, p, q, on), forward, **close)
    assert not torch.allclose(reverse, forward, rtol=1e-3)


@given(st.integers(0, 1000))
def test_off_policy_only_the_unbiased_one_has_the_gradient_of_the_kl(seed):
    theta, p, q, m = distributions(seed)
    reverse = torch.autograd.grad((p.exp() * (p - q)).sum(), theta, retain_graph=True)[0]
    full = torch.autograd.grad((terms.full_slopes(p.detach(), q) * p).sum(), theta, retain_graph=True)[0]
    torch.testing.assert_close(full, reverse, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope_of("unbiased", theta, p, q, m), reverse, rtol=1e-9, atol=1e-12)
    for biased in ("k1", "k2", "k3"):
        assert not torch.allclose(slope_of(biased, theta, p, q, m), reverse, rtol=1e-3)


@given(st.integers(0, 1000))
def test_off_policy_a_step_down_k1_climbs_the_kl_between_the_engines(seed):
    theta, p, q, m = distributions(seed)
    apart = torch.autograd.grad((m.exp() * (m - p)).sum(), theta, retain_graph=True)[0]
    torch.testing.assert_close(-slope_of("k1", theta, p, q, m), apart, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 1000))
def test_the_bonus_has_the_gradient_of_the_entropy(seed):
    theta, p, *_ = distributions(seed)
    expected = torch.autograd.grad(-(p.exp() * p).sum(), theta, retain_graph=True)[0]
    found = torch.autograd.grad((terms.entropy_slopes(p.detach()) * p).sum(), theta)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_the_bonus_is_divided_as_weights_are(norm):
    entropy = torch.rand(3, 5, dtype=torch.float64).requires_grad_()
    stats = batch(entropy=entropy)
    recipe = Recipe(terms={"entropy": 0.2}, aggregation=norm)
    loss = terms.bonus_loss(stats, terms.entropy_weights(stats, recipe))
    lengths = stats.mask.sum(-1).double()
    divisor = {"token_sum": 1.0, "length": lengths[:, None], "token_mean": lengths.mean(), "constant": 3.0}[
        norm["kind"]
    ]
    by_hand = -0.2 * (torch.where(stats.mask, entropy, 0.0) / divisor).sum(-1).mean()
    torch.testing.assert_close(loss, by_hand)
    assert not torch.autograd.grad(loss, entropy)[0][~stats.mask].any()


def test_values_are_those_of_the_published_losses_and_k3_keeps_its_digits():
    stats = batch()
    for estimator, loss in LOSSES.items():
        found = terms.values(stats, recipe_of(reference_kl=1.0, reference_estimator=estimator))["reference_kl"]
        expected = loss(stats.logp_theta, stats.logp_ref, stats.logp_mu)
        torch.testing.assert_close(found[stats.mask], expected[stats.mask], rtol=1e-12, atol=1e-14)
    near = batch(logp_ref=batch().logp_theta - 1e-4)
    found = terms.values(near, recipe_of(reference_kl=1.0))["reference_kl"][near.mask]
    torch.testing.assert_close(found, torch.full_like(found, 5e-9), rtol=1e-4, atol=0)


def test_a_token_that_a_policy_cannot_choose_leaves_numbers():
    logp = batch().logp_theta
    gone = torch.full_like(logp, -torch.inf)
    for changes in ({"logp_ref": gone}, {"logp_theta": gone}, {"logp_theta": gone, "logp_ref": gone}):
        for estimator in SAMPLED:
            recipe = recipe_of(reference_kl=1.0, reference_estimator=estimator, squared_log_ratio=1.0)
            for weight in terms.term_weights(batch(**changes), recipe).values():
                assert weight.isfinite().all()
            for value in terms.moments(batch(**changes), recipe, list(TERMS)[::2]).values():
                assert value[0].isfinite()


def test_a_ratio_past_the_bound_is_held():
    far = batch(logp_theta=torch.full((3, 5), -60.0).double(), logp_ref=torch.zeros(3, 5).double())
    found = terms.slopes(far, recipe_of(reference_kl=1.0))["reference_kl"]
    assert float(found.min()) == pytest.approx(1 - math.exp(20))


def test_without_terms_nothing_is_added_and_nothing_is_needed():
    stats, recipe = batch(logp_ref=None), Recipe()
    weight = torch.ones_like(stats.logp_theta)
    assert terms.with_terms(weight, stats, recipe) is weight
    assert not recipe.terms.active
    assert terms.quantities([recipe]) == {}


def test_what_a_term_reads_is_asked_for():
    with pytest.raises(DataError, match=r"terms\.reference_kl reads `logp_ref`"):
        terms.term_weights(batch(logp_ref=None), recipe_of(reference_kl=1.0))
    with pytest.raises(DataError, match=r"terms\.entropy reads `entropy`"):
        terms.moments(batch(), recipe_of(entropy=1.0), ["entropy"])
    with pytest.raises(DataError, match="`logp_ref` must be"):
        batch(logp_ref=torch.ones(3, 5).double())
    with pytest.raises(DataError, match="`entropy` must be"):
        batch(entropy=torch.ones(3, 4).double())


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ({"reference_estimator": "k2"}, "read beside terms.reference_kl only"),
        ({"squared_of": "theta/old", "entropy": 0.1}, "read beside terms.squared_log_ratio only"),
        ({"reference_kl": -0.1}, "reference_kl"),
        ({"reference_kl": 0.1, "reference_estimator": "abs"}, "reference_estimator"),
    ],
)
def test_settings_that_say_nothing_are_refused(section, what):
    with pytest.raises(ValueError, match=what):
        recipe_of(**section)


def test_terms_are_part_of_what_a_method_is_and_their_absence_is_not():
    plain = Recipe()
    assert fingerprint(plain) == fingerprint(Recipe(terms={}))
    assert len({fingerprint(r) for r in (plain, recipe_of(entropy=0.1), recipe_of(entropy=0.2))}) == 3
    assert recipe_of(reference_kl=0.1).scope == plain.scope


def test_terms_that_cannot_act_are_named():
    def idle(section, **how):
        recipe = Recipe(terms=section, schedule={"steps": how.pop("steps", 1)})
        return [name for name in inert_by_part(recipe, **{"stale": False} | how) if name in TERMS]

    assert idle({"reference_kl": 0.1}) == ["reference_kl"]
    assert idle({"reference_kl": 0.1}, steps=2) == []
    assert idle({"reference_kl": 0.1}, moved=True) == []
    assert idle({"reference_kl": 0.1, "reference_estimator": "k1"}) == []
    assert idle({"squared_log_ratio": 0.1}) == []
    assert idle({"squared_log_ratio": 0.1}, mismatch=False) == ["squared_log_ratio"]
    assert idle({"squared_log_ratio": 0.1, "squared_of": "theta/old"}) == ["squared_log_ratio"]
    assert idle({"squared_log_ratio": 0.1, "squared_of": "theta/old"}, stale=True) == []
    assert idle({"entropy": 0.1}) == []


def test_arms_with_and_without_terms_lie_side_by_side():
    with_kl, without = recipe_of(reference_kl=0.5, entropy=0.1), Recipe()
    arms = (Arm(recipe=with_kl, members=1), Arm(recipe=without, members=2))
    one = batch(entropy=torch.rand(3, 5).double())
    stats = TokenStats(**{name: torch.stack([x] * 3) for name, x in vars(one).items() if x is not None})
    weigh = RecipeWeights(arms)
    found = weigh(stats)
    alone = RecipeWeights((Arm(recipe=with_kl),))
    torch.testing.assert_close(found[0], alone(one))
    torch.testing.assert_close(found[2], RecipeWeights((Arm(recipe=without),))(one))
    above, below = weigh.moments["terms/reference_kl"]
    torch.testing.assert_close(above[0] / below[0], alone.moments["terms/reference_kl"][0] / below[0])
    assert not above[1:].any()
    bonus = bonus_weights(stats, arms)
    assert bonus[0].any()
    assert not bonus[1:].any()
    assert bonus_weights(stats, (Arm(recipe=without, members=3),)) is None


def test_inside_another_trainer_the_loss_holds_the_terms_and_they_are_read():
    recipe = recipe_of(reference_kl=0.5, squared_log_ratio=0.1, entropy=0.2)
    theta = batch().logp_theta.requires_grad_()
    entropy = torch.rand(3, 5, dtype=torch.float64).requires_grad_()
    stats = batch(logp_theta=theta, entropy=entropy)
    made = Method(recipe)(UnreadStats(**{name: x for name, x in vars(stats).items() if x is not None}))
    bare = Method(Recipe())(batch(logp_theta=theta))
    slopes = torch.autograd.grad(made.loss, [theta, entropy])
    added = torch.autograd.grad(bare.loss, theta)[0] - sum(terms.term_weights(stats, recipe).values()) / 3
    torch.testing.assert_close(slopes[0], added)
    torch.testing.assert_close(slopes[1], -terms.entropy_weights(stats, recipe) / 3)
    read = made.read()
    for name, value in terms.values(stats, recipe).items():
        assert read[f"terms/{name}"] == pytest.approx(float(value[stats.mask].mean()))
    with pytest.raises(ConfigError, match="full reads the whole distribution"):
        Method(recipe_of(reference_kl=0.5, reference_estimator="full"))
    with pytest.raises(DataError, match="`logp_ref`"):
        Method(recipe)(batch(logp_ref=None, entropy=entropy))


def test_every_estimator_and_term_has_its_row():
    assert list(ESTIMATORS) == [*terms.FUNCTIONS, "full"]
    assert list(TERMS) == [name.removeprefix(terms.PREFIX) for name in terms.QUANTITIES]
