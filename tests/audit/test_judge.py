from dataclasses import replace

import pytest
import torch
from dumps import clean

from firstorder.core.audit.finding import EACH, Detector, Finding, merged
from firstorder.core.audit.judge import judge_all
from firstorder.core.audit.structure import DETECTORS
from firstorder.core.errors import DataError
from firstorder.core.formats.chunk import chunks


def null_in(samples, row):
    worse = torch.where(samples[row].mask, torch.nan, samples[row].logp_old)
    return [replace(s, logp_old=worse) if i == row else s for i, s in enumerate(samples)]


def test_a_finding_names_the_row_that_shows_it_first_however_the_dump_is_cut():
    samples = null_in(clean(responses=12, length=40), 7)
    for positions in (64, 300, 1 << 16):
        findings, _ = judge_all(chunks(samples, positions), DETECTORS)
        assert [f.fault for f in findings] == ["null log-probs"]
        assert findings[0].where == samples[7].source


def test_what_is_found_does_not_depend_on_chunks():
    samples = [replace(s, logp_mu=torch.roll(s.logp_mu, 1).masked_fill(~s.mask, 0)) for s in clean(length=300)]
    told = {tuple(f.fault for f in judge_all(chunks(samples, n), DETECTORS)[0]) for n in (500, 2000, 1 << 16)}
    assert len(told) == 1
    assert "off by one" in told.pop()


def test_a_detector_without_its_columns_is_silent_and_says_which():
    samples = [replace(s, logp_old=None, routes_old=None) for s in clean()]
    _, silent = judge_all(chunks(samples), DETECTORS)
    assert silent["off by one"] == ("logp_old",)
    assert silent["physical expert ids"] == ("routes_old",)
    assert "null log-probs" not in silent


def test_a_detector_speaks_of_the_chunks_that_have_its_columns():
    samples = [replace(s, routes=None, routes_old=None) for s in clean(responses=4)] + null_in(clean(responses=4), 2)
    findings, silent = judge_all(chunks(samples), DETECTORS)
    assert not silent
    assert findings[0].where == samples[6].source


def test_findings_come_in_the_order_of_the_stages():
    def of(fault, stage):
        finding = Finding(fault=fault, evidence="", questions=("", ""))
        return Detector(fault=fault, stage=stage, needs=(), measure=lambda c: {}, judge=lambda s, k: finding, rule="")

    findings, _ = judge_all(chunks(clean(responses=1)), (of("late", 4), of("early", 1), of("between", 2)))
    assert [f.fault for f in findings] == ["early", "between", "late"]


def test_a_shared_measure_is_taken_once_a_chunk():
    seen = []

    def measure(chunk):
        seen.append(chunk)
        return {"n": torch.tensor(1)}

    twice = [
        Detector(fault=name, stage=1, needs=(), measure=measure, judge=lambda s, k: None, rule="") for name in "ab"
    ]
    judge_all(chunks(clean(responses=4), 100), twice)
    assert len(seen) == len(list(chunks(clean(responses=4), 100)))


def test_two_models_in_one_dump_are_refused_by_name():
    samples = clean(responses=2) + clean(responses=2, layers=5)
    with pytest.raises(DataError, match=r"good step 0 row 0: routes of other sizes .* audit the dumps of two models"):
        judge_all(chunks(samples), DETECTORS)


def test_sums_add_up_and_responses_are_kept_in_order():
    a, b = (
        {"n": torch.tensor(2), EACH + "x": torch.tensor([1, 2])},
        {"n": torch.tensor(3), EACH + "x": torch.tensor([3])},
    )
    both = merged(a, b)
    assert int(both["n"]) == 5
    assert both[EACH + "x"].tolist() == [1, 2, 3]
