from dataclasses import fields

import pytest
import torch
from dumps import clean

from firstorder.core.audit.finding import Known
from firstorder.core.audit.injection import FAULTS
from firstorder.core.audit.power import found, possible
from firstorder.core.audit.structure import DETECTORS
from firstorder.core.formats.sample import PER_TOKEN, ROUTED

SHOWN = [fault for fault in FAULTS if fault.found_by is not None]
HIDDEN = [fault for fault in FAULTS if fault.found_by is None]


@pytest.fixture(scope="module")
def good():
    return clean(seed=3, responses=24, length=400, sharp=3.0)


def with_fault(fault, good, seed=0):
    return fault.inject(good, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fault", SHOWN, ids=lambda f: f.name)
def test_a_fault_is_found_by_its_detector_before_anything_that_follows_from_it(fault, good):
    assert found(with_fault(fault, good), DETECTORS, Known(experts=16))[0] == fault.found_by


@pytest.mark.parametrize("fault", HIDDEN, ids=lambda f: f.name)
def test_what_is_called_hidden_is_not_found_and_says_what_would_show_it(fault, good):
    known = {"rows missing"} if "cut to length" in fault.name else set()  # which shows where lengths differ
    assert set(found(with_fault(fault, good), DETECTORS, Known(experts=16))) <= known
    assert fault.extra


def test_good_samples_are_found_good_and_stay_as_they_are(good):
    before = [{f.name: getattr(s, f.name) for f in fields(s)} for s in good]
    copies = [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in s.items()} for s in before]
    assert found(good, DETECTORS, Known(experts=16)) == ()
    for fault in FAULTS:
        with_fault(fault, good)
    for sample, copy in zip(good, copies, strict=True):
        for name in ("tokens", "mask", *PER_TOKEN, *ROUTED):
            assert torch.equal(getattr(sample, name), copy[name])


def test_every_detector_has_a_fault_that_tests_it():
    assert {fault.found_by for fault in SHOWN} | {"layers without routes"} >= {d.fault for d in DETECTORS}


def test_a_fault_needs_columns_that_samples_have(good):
    assert all(possible(good, fault) for fault in FAULTS)


def test_names_are_told_apart():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len({d.fault for d in DETECTORS}) == len(DETECTORS)
