import pytest

from firstorder.core.progress import steps, tell, watched


def test_work_that_nobody_watches_is_done_all_the_same():
    tell("x", 0, 1)
    assert list(steps("x", range(3))) == [0, 1, 2]


def test_a_watcher_hears_of_every_step_and_of_the_end_in_its_block_alone():
    heard = []
    with watched(lambda *told: heard.append(told)):
        assert list(steps("x", "ab")) == ["a", "b"]
    list(steps("x", "cd"))
    assert heard == [("x", 0, 2, ""), ("x", 1, 2, ""), ("x", 2, 2, "")]


def test_an_interrupted_block_leaves_no_watcher():
    heard = []
    with pytest.raises(KeyboardInterrupt), watched(lambda *told: heard.append(told)):
        raise KeyboardInterrupt
    tell("x", 0, 1)
    assert heard == []
