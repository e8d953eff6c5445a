"""A verifier in a process of its own: answers, limits, and a process that comes back."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # busy.py

from busy import busy, prepare

from firstorder.backends.tasks import worker as worker_module
from firstorder.backends.tasks.worker import Worker
from firstorder.core.errors import DataError


@pytest.fixture(scope="module")
def worker():
    """Of a verifier that may take 0.3 s."""
    made = Worker(busy, prepare, 0.3, 512)
    yield made
    made.close()


def test_answers_come_in_order_and_what_fails_is_none(worker):
    assert worker([("1",), ("x",), ("2.5",)]) == [2.0, None, 3.5]


@pytest.mark.parametrize("what", ["loop", "memory"])
def test_what_python_can_interrupt_ends_without_a_new_process(worker, what):
    assert worker([("0",)]) == [1.0]
    before = worker._process.pid
    assert worker([(what,), ("1",)]) == [None, 2.0]
    assert worker._process.pid == before


@pytest.mark.parametrize("what", ["stuck in C", "end"])
def test_what_it_cannot_ends_with_the_process_and_the_next_is_answered(worker, what, monkeypatch):
    monkeypatch.setattr(worker_module, "GRACE", 0.5)
    assert worker([("0",)]) == [1.0]
    before = worker._process.pid
    assert worker([(what,), ("1",)]) == [None, 2.0]
    assert worker._process.pid != before


def test_a_wrong_problem_stops_the_run(worker):
    with pytest.raises(DataError, match="the reference is wrong"):
        worker([("wrong data",)])
    assert worker([("1",)]) == [2.0]


def test_a_verifier_that_does_not_start_is_named(capfd):
    with pytest.raises(DataError, match="process does not start"):
        Worker(busy, os.abort, 0.3, 512)([("1",)])
