import random
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import made

from firstorder.core.audit.views import KEPT, SHOWN, TYPICAL, WINDOW, Views
from firstorder.core.formats.chunk import chunks, pad
from firstorder.core.formats.sample import Sample

SOURCE = {sample.source: sample for sample in made(count=40)}


def views(samples, positions=200):
    chosen = Views()
    for chunk in chunks(samples, positions):
        chosen = chosen.add(chunk)
    return chosen


def apart(sample):
    return torch.where(sample.mask, sample.logp_old - sample.logp_mu, 0.0)


def plain(length, spread=0.01, source="plain", seed=0):
    g = torch.Generator().manual_seed(seed)
    mu = -torch.rand(length, generator=g).double() - 0.5
    mask = torch.arange(length) > 0
    return Sample(
        source=source,
        step=0,
        tokens=torch.arange(length),
        mask=mask,
        logp_mu=mu,
        logp_old=mu + spread * torch.rand(length, generator=g),
    )


def test_the_first_views_are_the_worst_by_each_reason():
    shown = views(SOURCE.values()).shown()
    by = {why: next(v.source for v in shown if v.why == why) for why in ("largest |sum D|", "largest |D|")}
    assert by["largest |sum D|"] == max(SOURCE.values(), key=lambda s: abs(apart(s).sum())).source
    rest = [s for s in SOURCE.values() if s.source != by["largest |sum D|"]]
    assert by["largest |D|"] == max(rest, key=lambda s: apart(s).abs().max()).source


def test_flips_are_counted_on_the_rows_that_made_the_sampled_tokens():
    quiet, loud = made(count=2, steps=1, longest=30)[:2]
    quiet = replace(quiet, routes_old=quiet.routes.flip(-1))  # another order, the same experts
    theirs = loud.routes.clone()
    theirs[-2] = (theirs[-2] + 1) % 8  # the row of the last token's log-prob; topk ids differ from those beside them
    theirs[-2, 0] = loud.routes[-2, 0]
    loud = replace(loud, routes_old=theirs)
    shown = Views().add(pad([quiet, loud])).held["most flips"]
    assert [stretch.sample.source for stretch in shown] == [loud.source]
    assert shown[0].score == (loud.routes[-2].sort(-1).values != theirs[-2].sort(-1).values).any(-1).sum()


def test_rows_that_an_engine_did_not_send_are_no_flips():
    sample = made(count=1, steps=1)[0]
    sample = replace(sample, routes_old=torch.full_like(sample.routes, -1))
    assert not Views().add(pad([sample])).held["most flips"]


def test_tokens_without_a_number_come_first():
    sample = made(count=3)[1]
    broken = sample.logp_old.clone()
    place = int(sample.mask.nonzero()[-1])
    broken[place] = float("nan")
    samples = [replace(s, logp_old=broken) if s is sample else s for s in (*made(count=3)[:1], sample)]
    first = views(samples).shown()[0]
    assert (first.source, first.why) == (sample.source, "unusable tokens")
    assert first.logp_old[place - first.first] != first.logp_old[place - first.first]


@given(st.integers(1, 3000), st.integers(0, 2999))
@settings(max_examples=40, deadline=None)
def test_a_window_holds_the_worst_token_and_no_more_than_it_may(length, place):
    sample = plain(length)
    place = min(place, length - 1)
    old = sample.logp_old.clone()
    old[place] = -9.0
    view = (Views().add(pad([replace(sample, logp_old=old)])).shown() or (None,))[0]
    if length == 1:
        assert view is None or view.why == "unusable tokens"
        return
    assert len(view.tokens) == min(WINDOW, length)
    assert view.tokens == tuple(range(view.first, view.first + len(view.tokens)))
    if place:
        assert view.logp_old[place - view.first] == -9.0


def test_route_rows_are_those_that_made_the_tokens():
    sample = made(count=1, steps=1)[0]
    view = views([sample]).shown()[0]
    assert all(expert == -1 for layer in view.routes[0] for expert in layer)
    assert [list(map(list, row)) for row in view.routes[1:]] == sample.routes[:-1].tolist()
    long = replace(plain(2000), routes=torch.arange(2000).to(torch.int16)[:, None, None].repeat(1, 2, 1))
    cut = views([long]).shown()[0]
    assert cut.routes[0] == ((cut.first - 1,),) * 2


@given(st.randoms(use_true_random=False), st.integers(30, 400))
@settings(max_examples=15, deadline=None)
def test_the_choice_does_not_depend_on_the_order_of_reading(rng, positions):
    samples = list(SOURCE.values())
    rng.shuffle(samples)
    half = len(samples) // 3
    parts = views(samples[:half], positions).merged(views(samples[half:], positions))
    assert parts.shown() == views(SOURCE.values()).shown()


def test_a_typical_response_is_of_median_size():
    samples = [plain(50, spread=0.01 * (i + 1), source=f"line {i:02d}", seed=i) for i in range(31)]
    view = views(samples).shown()[-1]
    assert view.why == TYPICAL
    sizes = sorted(samples, key=lambda s: float(apart(s).abs().sum()))
    assert view.source == sizes[15].source


def test_there_are_no_more_views_than_a_list_can_hold_and_each_response_is_there_once():
    shown = views(made(count=60, steps=4)).shown()
    assert len(shown) <= SHOWN
    assert len({view.source for view in shown}) == len(shown)
    assert shown[-1].why == TYPICAL


def test_without_the_trainers_log_probs_something_is_shown():
    samples = [replace(s, logp_old=None, routes_old=None) for s in made(count=5)]
    (view,) = views(samples).shown()
    assert view.why == TYPICAL
    assert view.logp_old is None
    assert Views().shown() == ()


def test_a_tokenizer_gives_texts():
    view = views(made(count=1, steps=1)).shown(lambda i: f"<{i}>")[0]
    assert view.texts == tuple(f"<{i}>" for i in view.tokens)


def test_what_is_held_keeps_no_memory_of_the_dump():
    big = plain(100_000)
    (stretch,) = views([big], positions=1 << 16).held["largest |D|"]
    assert stretch.sample.tokens.untyped_storage().nbytes() == WINDOW * 8
    held = views([plain(20, source=str(i), seed=i) for i in range(500)]).held
    assert max(map(len, (held["largest |D|"], held["largest |sum D|"]))) == KEPT


def test_a_million_tokens_cost_little():
    rng = random.Random(0)
    samples = [plain(rng.randint(200, 4000), source=str(i), seed=i) for i in range(480)]
    tokens = sum(len(s.tokens) for s in samples)
    ready = list(chunks(samples, 1 << 16))
    started = time.process_time()
    chosen = Views()
    for chunk in ready:
        chosen = chosen.add(chunk)
    assert tokens > 900_000
    assert time.process_time() - started < 5.0  # 0.2 s where it was written


@pytest.mark.parametrize("missing", ["logp_mu", "routes"])
def test_columns_that_are_missing_in_some_files_are_no_obstacle(missing):
    first, second = made(count=2), made(seed=1, count=2)
    shown = views([*first, *(replace(s, **{missing: None, "source": f"other {s.source}"}) for s in second)]).shown()
    assert {view.source for view in shown} & {s.source for s in first}
