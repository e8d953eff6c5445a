# ruff: noqa: E501  programs are one line each
"""What a test takes from the program, and which tests cannot be judged apart from it."""

import json

import pytest

from firstorder.backends.tasks import code
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.tasks.jail.forms import names, unjudged
from firstorder.core.errors import ConfigError


@pytest.mark.parametrize(
    ("test", "program", "modules"),
    [
        ("assert f(2) == 4", {"f"}, set()),
        ("assert sum(10, 15) == 6", {"sum"}, set()),
        ("assert sorted(f(x=2)) == [4]", {"f"}, set()),
        ("assert math.isclose(f(2), 4)", {"f"}, {"math"}),
        ("import math\nassert math.isclose(f(2), g)", {"f", "g"}, set()),
        ("assert select([1]) == 1", {"select"}, set()),
        ("def check(candidate):\n    k = 3\n    assert candidate(k) == [k for _ in z]\ncheck(f)", {"f", "z"}, set()),
        ("x = [f(y) for y in range(3)]\nassert x == [0, 2, 4]", {"f"}, set()),
        ("s = Solution()\nassert s.two(1) == 2", {"Solution"}, set()),
    ],
)
def test_the_names_of_a_test_that_it_does_not_define_are_the_programs(test, program, modules):
    assert names(test) == (program, modules)


REFUSED = {
    "f(": "is no Python",
    "assert 2 == 2": "uses no name of the program",
    "def check(candidate):\n    assert candidate(2) == 4": "uses no name of the program",
    "assert eval('f(2)') == g": "uses eval",
    "assert isclose(f(2), 4)": "lets the program's isclose judge the program; import isclose in the test",
    "assert not differs(f(2), 4)": "lets the program's differs judge",
    "assert np.allclose(f(2), 4)": "takes np.allclose from the program; import np in the test",
    "from solution import f\nassert f(g) == 4": "imports solution, which is not installed here",
    "from unittest.mock import patch\nwith patch('builtins.input'): f()": "imports unittest.mock",
    "from unittest import mock\nf()": "imports unittest.mock",
    "assert isinstance(f(2), Point)": "gives isinstance a class of the program",
    "try:\n    f(2)\nexcept Mine:\n    pass": "catches the program's Mine",
    "assert Point(1) == Point(1)": "compares two of the program's Point",
    "class Node: pass\nassert f(Node()) == 4": "gives the program a Node",
}


@pytest.mark.parametrize("test", REFUSED)
def test_a_form_that_cannot_be_judged_is_refused_with_its_row(test, tmp_path):
    file = tmp_path / "tests.jsonl"
    rows = [{"prompt": "?", "answer": ["assert f(1) == 2"]}, {"prompt": "!", "answer": ["assert f(1) == 2", test]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError) as refused:
        code.problems(TaskSettings(kind="code", files=(str(file),)))
    assert "row 2: 'answer' has a test 2 that cannot be judged" in str(refused.value)
    assert REFUSED[test] in str(refused.value)


@pytest.mark.parametrize(
    "test",
    [
        "assert f.__name__ == f(2)",
        "assert is_prime(7)",
        "assert decode(encode('a')) == 'a'",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(f(2), 4)\nT('test').debug()",
        "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    raise AssertionError",
        "assert isinstance(f(2), (int, float))",
        "assert Solution().f(2) == 4",
    ],
)
def test_common_forms_are_not(test):
    assert unjudged(test) == ""


@pytest.mark.parametrize(
    "test", [{"input": "1"}, {"input": "1", "output": 2}, {"input": "1", "output": "2", "x": ""}, 3]
)
def test_a_test_is_python_or_an_input_and_its_output(test, tmp_path):
    file = tmp_path / "tests.jsonl"
    file.write_text(json.dumps({"prompt": "?", "answer": [test]}))
    with pytest.raises(ConfigError, match=r"or of objects with `input` and `output`, texts; test 1 is"):
        code.problems(TaskSettings(kind="code", files=(str(file),)))
