import pytest
import torch

from firstorder.core.audit import size
from firstorder.core.audit.distribution import TEMPERATURE, TRUNCATION, UNRECORDED
from firstorder.core.audit.finding import Known, merged
from firstorder.core.audit.routers import UNREPLAYED
from firstorder.core.formats.chunk import chunks
from firstorder.core.routing import check_routes, flips
from firstorder.sim.tasks.task import converse
from firstorder.sim.trials import dump_faults, dump_pairs, dumps

SEED = next(s for s in range(100) if (c := dump_faults.setting(s)).policy == "usual" and c.longest == 160)


def judged(detector, samples, known=None):
    sums = {}
    for chunk in chunks(samples):
        sums = merged(sums, detector.measure(chunk))
    return detector.judge(sums, known or Known())


def ratio(samples):
    return torch.cat([(s.logp_old - s.logp_mu)[s.mask] for s in samples])


@pytest.mark.parametrize("policy", dump_pairs.POLICIES)
def test_a_dump_holds_what_its_tables_say_of_every_token(policy):
    pair = dump_pairs.pair(policy, "bf16", 0)
    for sample in dumps.dump(pair, 5, tokens=400, longest=24)[:6]:
        start = pair.contexts.start[sample.group]
        said = sample.tokens[sample.mask]
        contexts = pair.contexts.walk(start, said, torch.ones(len(said), dtype=torch.bool))
        for name in ("logp_mu", "logp_old"):
            expected = getattr(pair, name)[0, contexts, said].float().double()
            torch.testing.assert_close(getattr(sample, name)[sample.mask], expected)
        torch.testing.assert_close(sample.entropy[sample.mask], pair.entropy[0, contexts].float().double())
        made = sample.routes[:-1][sample.mask[1:]]  # the row before a token made it
        torch.testing.assert_close(made, pair.routes[0, contexts])
        assert (sample.routes[-1] == -1).all()
        check_routes(sample.routes_old, pair.sim.experts)


def test_the_environment_answers_what_the_task_answers():
    pair = dump_pairs.pair("turns", "exact", 0)
    for sample in dumps.dump(pair, 3, tokens=400, longest=40)[:5]:
        said = sample.tokens[sample.mask][None]
        sim = pair.sim.model_copy(update={"horizon": said.shape[-1]})
        there = converse(type(pair.task)(sim), torch.tensor([sample.group]), said, torch.ones_like(said, dtype=bool))
        torch.testing.assert_close(there.tokens[0], sample.tokens)
        torch.testing.assert_close(there.mask[0], sample.mask)


def test_a_dump_is_the_same_from_the_same_seed_and_another_from_another():
    one, same, other = (dumps.clean(seed, 600) for seed in (7, 7, 8))
    assert all(torch.equal(a.logp_mu, b.logp_mu) for a, b in zip(one, same, strict=True))
    assert len(one) != len(other) or not all(torch.equal(a.tokens, b.tokens) for a, b in zip(one, other, strict=True))


def test_tokens_are_drawn_from_the_distributions_of_the_rollout_engine():
    pair = dump_pairs.pair("usual", "fresh-0.1", 0)
    samples = dumps.dump(pair, 1, tokens=40_000, longest=40)
    score = torch.cat([s.logp_mu[s.mask] for s in samples]) + torch.cat([s.entropy[s.mask] for s in samples])
    assert float(score.sum() / score.square().sum().sqrt()) == pytest.approx(0.0, abs=4.0)
    excess = ratio(samples).expm1()
    assert float(excess.sum() / excess.square().sum().sqrt()) == pytest.approx(0.0, abs=4.0)


def test_lengths_policies_and_engines_are_as_wide_as_promised():
    chosen = [dumps.choice(seed) for seed in range(600)]
    assert {c.policy for c in chosen} == {*dump_pairs.POLICIES, *dump_pairs.TREES}
    assert {c.engines for c in chosen} == set(dump_pairs.ENGINES)
    assert {c.longest for c in chosen} == {*dumps.LENGTHS, dumps.LONG}
    entropies = [
        float(torch.cat([s.entropy[s.mask] for s in dumps.dump(dump_pairs.pair(p, "exact", 0), 0, 2000)]).mean())
        for p in ("uncertain", "usual", "peaked", "sharp")
    ]
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[0] > 3.0
    assert entropies[-1] < 0.5


def test_responses_of_32768_tokens_are_drawn():
    samples = dumps.dump(dump_pairs.pair("peaked", "bf16", 0), 0, tokens=10_000, longest=dumps.LONG)
    assert len(samples) == dumps.LEAST
    assert max(len(s.tokens) for s in samples) > dumps.LONG // 2


def test_replay_leaves_no_trace_of_the_flips():
    live, replayed = (dump_pairs.pair("usual", "fresh-0.03", 0, replay) for replay in ("disabled", "R3"))
    known = Known(replay="R3")
    assert judged(UNREPLAYED, dumps.dump(live, 2, longest=160), known).fault == "routes not replayed"
    samples = dumps.dump(replayed, 2, longest=160)
    assert judged(UNREPLAYED, samples, known) is None
    assert any(flips(s.routes[:-1], s.routes_old[:-1]).any() for s in samples)


@pytest.mark.parametrize("name", [name for name in dump_faults.FAULTS if not name.startswith(("16", "64"))])
def test_a_fault_makes_a_dump_and_says_how_it_is_found(name):
    fault = dump_faults.FAULTS[name]
    samples = fault.make(SEED, 300)
    assert fault.detector
    assert sum(int(s.mask.sum()) for s in samples) >= 100


def test_faults_of_the_distribution_are_what_they_are_called():
    names = ("top-p 0.99 processed", "top-p 0.9 processed", "temperature 0.9 processed")
    make = {name: dump_faults.FAULTS[name].make(SEED, 10_000) for name in names}
    mass = {name: float(ratio(samples).exp().mean()) for name, samples in make.items()}
    assert mass["top-p 0.99 processed"] == pytest.approx(0.993, abs=0.006)
    assert mass["top-p 0.9 processed"] == pytest.approx(0.92, abs=0.02)
    assert mass["temperature 0.9 processed"] == pytest.approx(1.0, abs=0.01)
    assert judged(TRUNCATION, make["top-p 0.9 processed"]) is not None
    assert judged(TEMPERATURE, make["temperature 0.9 processed"]) is not None
    assert judged(UNRECORDED, make["temperature 0.9 processed"]) is None


def test_versions_of_a_mixed_dump_are_those_that_sampled():
    samples = dump_faults.FAULTS["versions mixed, 4 updates"].make(SEED, 3000)
    d, older = ratio(samples).abs(), torch.cat([(s.version == s.step - 1)[s.mask] for s in samples])
    assert 0.2 < float(older.double().mean()) < 0.6
    assert float(d[older].mean()) > 3 * float(d[~older].mean())
    assert all((s.version[~s.mask] == -1).all() for s in samples)


@pytest.mark.parametrize(("engines", "precision"), [("fp16", "fp16"), ("bf16", "bf16"), ("fp8", "fp8")])
def test_the_noise_of_each_precision_is_what_the_simulator_shows(engines, precision):
    noises = []
    for policy in ("uncertain", "usual", "peaked", "sharp", "turns"):
        for seed in (0, 1, 2):
            sums = {}
            for chunk in chunks(dumps.dump(dump_pairs.pair(policy, engines, seed), seed, 4000)):
                sums = merged(sums, size.terms(chunk))
            noises.append(size.size(sums).noise)
    middle = sorted(noises)[len(noises) // 2]
    assert size.TYPICAL[precision] / 2 < middle < 2 * size.TYPICAL[precision]
    assert size.SIMULATED[precision] / 4 < max(noises) <= size.SIMULATED[precision]
