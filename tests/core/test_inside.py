"""A recipe inside another trainer: what it gives is what the parts give, in one graph, waited for once."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from firstorder.core.errors import ConfigError, DataError, NotFiniteError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats, UnreadStats
from firstorder.core.method.surrogate import receipts, surrogate_loss, token_weights
from firstorder.core.quantities import means
from firstorder.core.settings import toml
from firstorder.core.training import diagnostics, strata
from firstorder.core.training.inside import Method, Whole, together, unravelled


def recipe(name):
    return toml.build(Recipe, toml.read(name))


def distinct():
    """A shipped recipe for every weight that needs no more than the log-probs of sampled tokens."""
    named = {}
    for name in toml.shipped():
        each = recipe(name)
        if not each.about.unsupported and not each.needs:
            weight = each.model_dump_json(include={"ratio", "correction", "clip", "aggregation"})
            named.setdefault(weight, name)
    return list(named.values())


def unread(stats, **changed):
    return UnreadStats(**vars(stats) | changed)


class Waits(TorchDispatchMode):
    """Counts what makes a host wait for its device: values read, sizes that hang on values, and constants sent."""

    WAITING = (
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "nonzero",
        "equal",
        "masked_select",
        "_unique2",
        "lift_fresh",
    )

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.WAITING:
            self.seen.append(name)
        return function(*args, **kwargs or {})


@pytest.fixture
def compiled():
    """Compiles a function in one graph, or fails."""
    torch._dynamo.reset()
    yield lambda function, backend="eager": torch.compile(function, backend=backend, fullgraph=True)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["minirl", "gspo", "dapo", "mis", "vespo"])
def test_what_is_read_is_what_the_parts_give(make_stats, name):
    stats, rule = make_stats(), recipe(name)
    out = Method(rule)(stats)
    factors = token_weights(stats, rule)
    expected = (
        {"loss": surrogate_loss(stats, factors.weight)}
        | diagnostics.diagnose(stats)
        | strata.finalise(strata.moments(stats))
        | means(receipts(stats, factors, rule))
    )
    assert out.read() == {key: float(value) for key, value in expected.items()}
    assert torch.equal(out.weights.weight, factors.weight)


def test_the_gradient_is_that_of_the_weights(make_stats, same):
    logp = make_stats().logp_theta.requires_grad_()
    stats = unread(make_stats(), logp_theta=logp)
    out = Method(recipe("minirl"))(stats)
    out.loss.backward()
    same(logp.grad, -torch.where(stats.mask, out.weights.weight, 0.0) / len(logp))


@pytest.mark.parametrize("name", distinct())
def test_every_recipe_is_one_graph(make_stats, compiled, name):
    stats, rule = make_stats(), recipe(name)

    def weigh(stats):
        factors = token_weights(stats, rule)
        return surrogate_loss(stats, factors.weight), receipts(stats, factors, rule)

    torch.testing.assert_close(compiled(weigh)(unread(stats)), weigh(stats), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["minirl", "m2po"])
def test_a_whole_step_is_one_graph_with_its_gradient(make_stats, compiled, name):
    stats, method = make_stats(), Method(recipe(name))
    logp = [stats.logp_theta.clone().requires_grad_() for _ in range(2)]
    outs = [
        call(unread(stats, logp_theta=x)) for call, x in zip((method, compiled(method, "aot_eager")), logp, strict=True)
    ]
    for out in outs:
        out.loss.backward()
    assert outs[0].read() == pytest.approx(outs[1].read(), rel=1e-12)
    torch.testing.assert_close(logp[0].grad, logp[1].grad, rtol=1e-12, atol=0)


def test_batches_of_other_sizes_are_not_compiled_anew(make_stats, compiled):
    counter = CompileCounter()
    method = Method(recipe("dapo"))
    step = compiled(method, counter)
    for size, length in ((6, 8), (7, 9), (5, 16)):
        g = torch.Generator().manual_seed(size)
        logp = -torch.rand(size, length, generator=g) - 0.1
        stats = UnreadStats(
            logp_theta=logp, logp_old=logp, logp_mu=logp - 0.1, mask=logp < -0.2, advantage=logp.new_ones(size)
        )
        assert step(stats).read() == method(stats).read()
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", distinct())
def test_nothing_waits_for_a_device_before_it_is_read(make_stats, name):
    stats, method = make_stats(), Method(recipe(name))
    with Waits() as waits:
        out = method(unread(stats, logp_theta=stats.logp_theta.clone().requires_grad_()))
        out.loss.backward()
    assert waits.seen == []
    with waits:
        out.read()
    assert waits.seen == []  # no value alone: all of them lie in one tensor, which is copied


def test_numbers_and_faults_come_in_one_transfer(make_stats, monkeypatch):
    record = Method(recipe("minirl"))(make_stats()).record
    sent, bring = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: sent.append(x.shape) or bring(x))
    found = together([record, record]).read()
    assert sent == [(2 * record.faults.numel() + record.sums.numel() + 1,)]
    assert found.keys() > {"loss", "k3_kl", "clip_upper"}


def test_what_waits_is_seen(make_stats):
    with Waits() as waits:
        make_stats()
    assert "_local_scalar_dense" in waits.seen
    with Waits() as waits:
        torch.tensor(1.0)
        torch.ones(2)[torch.tensor([True, False])]
    assert waits.seen.count("lift_fresh") == 2
    assert "nonzero" in waits.seen or len(waits.seen) == 2  # an index by a mask


def without_values(stats, device):
    there = {name: x for name, x in vars(stats).items() if x is not None}
    return UnreadStats(**{name: torch.empty(x.shape, dtype=x.dtype, device=device) for name, x in there.items()})


@pytest.mark.parametrize("name", distinct())
def test_no_value_is_needed(make_stats, name):
    stats = make_stats()
    with FakeTensorMode():
        out = Method(recipe(name))(without_values(stats, "cpu"))
        with pytest.raises(DataDependentOutputException):
            out.loss.item()
    out = Method(recipe(name))(without_values(stats, "meta"))
    assert {x.device.type for x in (out.loss, out.record.sums, out.record.faults, out.weights.weight)} == {"meta"}


BROKEN = {
    "logp_theta": (torch.nan, 1e-3, torch.inf),
    "logp_old": (torch.nan, 0.5),
    "logp_mu": (torch.nan, -torch.inf, 0.5),
    "advantage": (torch.nan, -torch.inf),
    "kl_mu": (torch.nan,),
    "router_shift": (torch.nan, -0.5),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BROKEN.items() for value in values])
def test_a_wrong_value_is_refused_when_it_is_read_by_the_line_it_would_have_had(make_stats, name, value):
    stats = make_stats()
    x = getattr(stats, name)
    x = x[:, None].repeat(1, 8) if x.ndim == 1 else x.clone()
    for place in ((3, 1), (0, 5), (5, 1)):
        x[place] = value
    with pytest.raises(DataError) as at_once:
        replace(stats, **{name: x})
    out = Method(recipe("minirl"))(unread(stats, **{name: x}))
    with pytest.raises(type(at_once.value)) as later:
        out.read()
    assert str(later.value) == str(at_once.value)
    assert isinstance(later.value, NotFiniteError) == (name == "logp_theta")


def test_a_wrong_value_is_found_by_a_compiled_step(make_stats, compiled):
    stats = make_stats()
    x = stats.logp_mu.clone()
    x[0, 5] = torch.nan
    out = compiled(Method(recipe("minirl")))(unread(stats, logp_mu=x))
    with pytest.raises(DataError, match=r"`logp_mu` must be finite .*, got 1 that is not, the first nan at \[0, 5\]"):
        out.read()


def test_shapes_and_dtypes_are_refused_at_once(make_stats):
    stats = make_stats()
    with pytest.raises(DataError, match=r"`logp_old` must be \[6, 8\]"):
        unread(stats, logp_old=stats.logp_old[:, 1:])
    with pytest.raises(DataError, match="`logp_mu` must be float32 or float64, got bfloat16"):
        unread(stats, logp_mu=stats.logp_mu.bfloat16())
    with pytest.raises(DataError, match=r"`logp_theta` must be \[batch, token\], got \[2, 6, 8\]"):
        Method(recipe("minirl"))(
            UnreadStats(**{n: torch.stack([x, x]) for n, x in vars(stats).items() if x is not None})
        )


def test_unread_statistics_stay_unread(make_stats):
    stats = unread(make_stats())
    with Waits() as waits:
        changed = stats.with_advantage(stats.advantage * torch.nan)
    assert type(changed) is UnreadStats
    assert waits.seen == []


@pytest.mark.parametrize("name", ["minirl", "dapo", "grpo", "dr-grpo", "mis"])
def test_the_losses_and_sums_of_parts_add_up_to_those_of_the_whole(make_stats, same, name):
    stats, method = make_stats(size=8), Method(recipe(name))
    whole = method(stats)
    size = Whole(responses=8, tokens=stats.mask.sum())
    parts = [
        method(TokenStats(**{n: x[cut] for n, x in vars(stats).items() if x is not None}), size)
        for cut in (slice(0, 3), slice(3, 8))
    ]
    joined = together([part.record for part in parts])
    same(joined.loss, whole.loss)
    assert joined.read() == pytest.approx(whole.read(), rel=1e-12)


def test_a_wrong_value_of_any_part_is_refused(make_stats):
    method, stats = Method(recipe("minirl")), make_stats()
    x = stats.logp_old.clone()
    x[3, 1] = 0.5
    for parts in ((x, stats.logp_old), (stats.logp_old, x)):
        outs = [method(unread(stats, logp_old=part)).record for part in parts]
        with pytest.raises(DataError, match=r"`logp_old` must be at most 0 .* the first 0.5 at \[3, 1\]"):
            together(outs).read()


def test_a_weight_that_reads_the_whole_batch_takes_no_part(make_stats):
    with pytest.raises(ConfigError, match=r"clip\.kind = m2po reads the whole batch"):
        Method(recipe("m2po"))(make_stats(), Whole(responses=8, tokens=100))


def test_what_does_not_fit_the_form_is_refused():
    with pytest.raises(ConfigError, match="cannot be run"):
        Method(recipe("pr2"))


def test_a_recipe_that_needs_more_says_what(make_stats):
    with pytest.raises(DataError, match="needs `kl_mu`"):
        Method(recipe("trm"))(unread(make_stats(), kl_mu=None))


@pytest.mark.parametrize(("place", "shape", "index"), [(0, (3,), [0]), (7, (2, 4), [1, 3]), (23, (2, 3, 4), [1, 2, 3])])
def test_a_place_in_a_row_is_a_place_in_the_shape(place, shape, index):
    assert unravelled(place, shape) == index
