"""What a recipe costs inside another trainer: eager and compiled, read once and read number by number."""

import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats, UnreadStats
from firstorder.core.method.surrogate import receipts, surrogate_loss, token_weights
from firstorder.core.settings import toml
from firstorder.core.training import diagnostics
from firstorder.core.training.inside import Method

RESPONSES, TOKENS, VOCAB = 64, 1024, 4096


def arrays():
    g = torch.Generator().manual_seed(0)
    base = -torch.rand(RESPONSES, TOKENS, generator=g).mul(3).square() - 1e-3
    near = [(base + 0.02 * torch.randn(base.shape, generator=g)).clamp(max=-1e-4) for _ in range(3)]
    names = ("logp_theta", "logp_old", "logp_mu")
    advantage = torch.randn(RESPONSES, generator=g)
    return dict(zip(names, near, strict=True)) | {"mask": base < -0.01, "advantage": advantage}


@pytest.fixture
def given():
    found = arrays()
    return found | {"logp_theta": found["logp_theta"].requires_grad_()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what inductor imports
@pytest.mark.parametrize("name", ["minirl", "gspo"])
def test_a_step_compiled_and_eager(in_turns, benchmarking, given, name):
    torch._dynamo.reset()
    method = Method(toml.build(Recipe, toml.read(name)))
    compiled = torch.compile(method, backend="inductor" if benchmarking else "eager", fullgraph=True)

    def step(call):
        def run():
            call(UnreadStats(**given)).loss.backward()

        return run

    assert compiled(UnreadStats(**given)).read() == pytest.approx(method(UnreadStats(**given)).read(), rel=1e-5)
    in_turns(**{f"compiled_step_of_{name}": step(compiled), f"eager_step_of_{name}": step(method)})
    torch._dynamo.reset()


def test_a_step_beside_what_makes_its_log_probs(in_turns, given):
    method = Method(toml.build(Recipe, toml.read("minirl")))
    logits = torch.randn(RESPONSES // 8, TOKENS, VOCAB, generator=torch.Generator().manual_seed(1), requires_grad=True)
    chosen = torch.zeros(RESPONSES // 8, TOKENS, 1, dtype=torch.long)

    def head():  # an eighth of the responses, which are as many tokens as a micro-batch has
        logits.log_softmax(-1).gather(-1, chosen).sum().backward()

    def step():
        method(UnreadStats(**given)).loss.backward()

    in_turns(scale=1 / 8, **{f"log_softmax_over_{VOCAB}": head, "step_with_metrics_and_receipts": step})


def test_what_metrics_receipts_and_checks_add(in_turns, given):
    rule = toml.build(Recipe, toml.read("minirl"))
    method = Method(rule)

    def bare():
        stats = UnreadStats(**given)
        surrogate_loss(stats, token_weights(stats, rule).weight).backward()

    def whole():
        out = method(UnreadStats(**given))
        out.loss.backward()
        out.read()

    def one_by_one():
        stats = TokenStats(**given)
        factors = token_weights(stats, rule)
        surrogate_loss(stats, factors.weight).backward()
        numbers = [float(x) for x in diagnostics.diagnose(stats).values()]
        return numbers + [float(a / b) for a, b in receipts(stats, factors, rule).values()]

    in_turns(
        loss_and_gradient_alone=bare,
        with_metrics_receipts_and_checks_read_once=whole,
        with_metrics_and_receipts_read_one_by_one=one_by_one,
    )
