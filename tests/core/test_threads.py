import logging

import pytest
import torch

from firstorder.core import threads
from firstorder.core.threads import FILLS, filled, sized


@pytest.fixture(autouse=True)
def two(monkeypatch):
    """Torch with two threads, and nobody's choice in the environment."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads._tell.cache_clear()
    yield
    torch.set_num_threads(before)


def inside(numbers):
    with threads.threads(numbers):
        return torch.get_num_threads()


def test_small_work_has_one_thread_and_large_work_all_that_torch_has():
    assert [inside(numbers) for numbers in (0, FILLS, 2 * FILLS, 100 * FILLS)] == [1, 1, 2, 2]
    assert filled(100 * FILLS, 64) == 64


def test_what_torch_had_before_is_put_back_after_a_failure_too():
    with pytest.raises(ZeroDivisionError), threads.threads(0):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_blocks_that_overlap_leave_what_torch_had_before_the_first():
    one, other = threads.threads(0), threads.threads(0)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert torch.get_num_threads() == 1
    other.__exit__(None, None, None)
    assert torch.get_num_threads() == 2


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert inside(0) == 2


def test_a_function_is_sized_by_its_arguments():
    run = sized(lambda size: size)(lambda size: torch.get_num_threads())
    assert (run(0), run(2 * FILLS)) == (1, 2)


def test_several_threads_are_logged_once(caplog):
    with caplog.at_level(logging.INFO, "firstorder"):
        inside(0)
        assert caplog.messages == []
        inside(2 * FILLS)
        inside(2 * FILLS)
    assert caplog.messages == ["torch computes with 2 threads; OMP_NUM_THREADS=1 gives the last digits of one"]


def test_threads_that_spin_are_warned_of(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert inside(0) == 1
    with pytest.warns(UserWarning, match="import firstorder first, or set OMP_WAIT_POLICY=passive"):
        inside(2 * FILLS)
