from collections import Counter

import pytest
import torch
from dumps import clean
from made import made

from firstorder.core.audit.finding import Known
from firstorder.core.audit.good import good
from firstorder.core.audit.injection import FAULTS
from firstorder.core.audit.power import Trial, accused, found, injected, power, table, untold
from firstorder.core.audit.structure import DETECTORS

ONE = next(f for f in FAULTS if f.name == "off by one")
HIDDEN = next(f for f in FAULTS if f.found_by is None)


def dump(seed, size):
    return clean(seed=seed, responses=max(3, size // 150), length=min(size // 3, 150), routed=False)


def test_no_clean_dump_is_accused():
    sizes = [(3, 12), (8, 60), (16, 200)]
    dumps = (
        clean(seed=seed, responses=n, length=length, spread=spread, sharp=sharp, loop=loop, saw=bool(seed % 2))
        for seed, (n, length) in enumerate(sizes)
        for spread in (1e-4, 0.05, 0.4)
        for sharp in (1.0, 4.0, 20.0)
        for loop in (0, 7)
    )
    assert accused(dumps, DETECTORS, Known(experts=16)) == Counter()


@pytest.mark.parametrize(("layers", "experts", "top_k", "dense"), [(1, 4, 2, 0), (2, 4, 1, 0), (8, 64, 8, 2)])
def test_routes_of_few_layers_and_few_experts_are_not_taken_for_fills(layers, experts, top_k, dense):
    dumps = (clean(seed=seed, layers=layers, experts=experts, top_k=top_k, dense=dense) for seed in range(4))
    assert accused(dumps, DETECTORS, Known(experts=experts)) == Counter()


def test_made_samples_are_not_accused():
    assert accused((made(seed) for seed in range(6)), DETECTORS, Known(experts=8)) == Counter()


@pytest.mark.parametrize(("offset", "slope"), [(0.1, 1.0), (0.5, 1.0), (0.0, 0.6), (0.0, 1.7), (0.1, 3.0)])
def test_an_offset_or_a_temperature_between_the_engines_is_no_fault_of_structure(offset, slope):
    dumps = (
        clean(seed=seed, length=300, offset=offset, slope=slope, saw=saw, sharp=sharp, routed=False)
        for seed in range(2)
        for saw in (False, True)
        for sharp in (2.0, 12.0)
    )
    assert accused(dumps, DETECTORS) == Counter()


def test_engines_that_agree_to_the_bit_are_told_from_nothing_else():
    assert accused([clean(spread=0.0)], DETECTORS, Known(experts=16)) == Counter({"identical log-probs": 1})


def test_good_dumps_of_many_kinds_are_not_accused():
    dumps = (good(seed, tokens) for seed in range(0, 24, 2) for tokens in (30, 1000))
    assert accused(dumps, DETECTORS, Known(experts=64)) == Counter()


def test_a_fault_is_caught_from_some_size_on():
    (told,) = power(injected(dump, [ONE]), DETECTORS, sizes=(30, 1000), seeds=3)
    assert told.caught == {30: 0.0, 1000: 1.0}
    assert told.enough == 1000
    assert told.first == 1.0


def test_a_fault_that_is_not_caught_at_every_larger_size_has_no_size():
    def shrinking(seed, size):
        return ONE.inject(dump(seed, 1030 - size), torch.Generator().manual_seed(seed))

    trial = Trial(name="off by one", make=shrinking, found_by="off by one")
    (told,) = power([trial], DETECTORS, sizes=(30, 1000), seeds=2)
    assert told.caught == {30: 1.0, 1000: 0.0}
    assert told.enough is None


def test_the_table_has_a_row_a_fault_and_says_what_would_show_a_hidden_one():
    powers = tuple(power(injected(dump, [ONE, HIDDEN]), DETECTORS, sizes=(300,), seeds=1))
    told = table(powers, Counter({"off by one": 2}), clean=7)
    assert {c.key for c in told.columns} == set(told.rows[0])
    assert told.rows[0]["false_alarms"] == 2
    assert told.rows[1]["detector"] is None
    assert told.rows[1]["extra"] == HIDDEN.extra
    assert "7 clean dumps" in told.note


def test_a_fault_that_the_samples_have_no_columns_for_is_no_trial():
    routes = next(f for f in FAULTS if f.name == "all routes zero")
    assert [trial.name for trial in injected(dump, [routes, ONE])] == [ONE.name]


def test_what_is_known_of_a_run_reaches_the_detectors():
    beyond = next(f for f in FAULTS if f.found_by == "expert ids out of range")
    with_experts, without = (injected(good, [beyond], known)[0] for known in (lambda seed: Known(experts=64), untold))
    assert beyond.found_by in found(with_experts.make(0, 300), DETECTORS, with_experts.known(0))
    assert beyond.found_by not in found(without.make(0, 300), DETECTORS, without.known(0))


def test_the_same_seed_makes_the_same_fault():
    samples = clean()
    twice = [ONE.inject(samples, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert all(torch.equal(a.logp_mu, b.logp_mu) for a, b in zip(*twice, strict=True))
