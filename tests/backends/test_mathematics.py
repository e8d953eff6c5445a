"""Answers of mathematics are verified by value, in a time that is bounded; a reference must be equal to itself."""

import json
import math
from pathlib import Path

import pytest

from firstorder.backends.tasks import mathematics
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.tasks.problems import Problem
from firstorder.backends.tasks.worker import Worker
from firstorder.core.errors import ConfigError, DataError
from firstorder.core.progress import watched

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


def test_mathematics_is_verified_by_value_and_cannot_hang():
    given = TaskSettings(kind="math", files=(str(EXAMPLES / "math.jsonl"),), prompt_column="problem", seconds=2.0)
    problems = mathematics.problems(given.model_copy(update={"held_out": 0.3}))
    known = {p.question: p for side in problems for p in (side[row] for row in range(side.size))}
    said = {
        "What is 17 + 25?": [("It is \\boxed{42}.", 1.0), ("\\boxed{43}", 0.0), ("\\boxed{9^{9^{9^{9}}}}", 0.0)],
        "Write 0.5 as a fraction.": [("<think>1/3</think> 0.5", 1.0), ("", 0.0)],
        "Expand (x + 1)^2.": [("$x^2+1+2x$", 1.0)],
        "Simplify \\sqrt{8}.": [("$\\sqrt{8}$", 1.0), ("$3$", 0.0)],
    }
    asked = [(known[question], *pair) for question, pairs in said.items() for pair in pairs]
    judge = mathematics.judge(given)
    assert judge([p for p, _, _ in asked], [text for _, text, _ in asked]) == [reward for _, _, reward in asked]
    with pytest.raises(DataError, match="math-verify cannot read the answer"):
        judge([Problem("?", "$$")], ["1"])


@pytest.mark.parametrize(
    ("reference", "text", "reward"),
    [
        ("7", "First \\boxed{5} then \\boxed{7}", 1.0),
        ("5", "First \\boxed{5} then \\boxed{7}", 0.0),
        ("7", "\\boxed{7} or \\boxed{7", 0.0),
        ("1/2^99", "\\boxed{1/2^98}", 0.0),
        ("1/2^99", "\\boxed{1/2^99}", 1.0),
        ("50", "\\boxed{50\\%}", 0.0),
        ("50", "It is $50\\%$.", 0.0),
        ("50\\%", "\\boxed{50}", 0.0),
        ("50\\%", "\\boxed{50\\%}", 1.0),
        (mathematics.spelled(1e-05), "\\boxed{10^{-5}}", 1.0),
        ("\\{1,2\\}", "\\boxed{\\{2,1\\}}", 1.0),
        ("7", "\\boxed 7", 1.0),
        ("7", "\\fbox{7}", 1.0),
        ("7", "\\boxed{\\boxed{7}}", 1.0),
        ("(1,2)", "\\boxed{(1,2)}", 1.0),
        ("5\\text{ cm}", "\\boxed{5\\text{ cm}}", 1.0),
        ("5 cm", "\\boxed{5}", 1.0),  # math-verify leaves units out
        ("5\\text{ cm}", "\\boxed{6\\text{ cm}}", 0.0),
        ("[0,1)", "\\boxed{[0,1)}", 1.0),
        ("[0,1)", "\\boxed{(0,1)}", 0.0),
        ("(0,1]", "\\boxed{[0,1]}", 0.0),
        ("[0,\\infty)", "\\boxed{[0,\\infty)}", 1.0),
        ("(-\\infty,0)\\cup(1,2)", "\\boxed{(1,2)\\cup(-\\infty,0)}", 1.0),
        ("\\infty", "\\boxed{-\\infty}", 0.0),
        ("\\{1,2\\}", "\\boxed{\\{1,3\\}}", 0.0),
        ("Monday", "\\boxed{Monday}", 1.0),
        ("Monday", "\\boxed{\\text{monday}}", 1.0),
        ("\\text{Monday}", "\\boxed{Monday}", 1.0),
        ("\\text{Monday}", "It is $\\text{Monday}$.", 1.0),
        ("Monday", "\\boxed{dynamo}", 0.0),  # its letters in another order
        ("Monday", "\\boxed{\\text{Tuesday}}", 0.0),
        ("Monday", "\\boxed{Monday} or \\boxed{Tuesday", 0.0),
        ("on Monday", "\\boxed{\\text{on Monday}}", 1.0),
        ("B", "\\boxed{\\text{(B)}}", 1.0),
        ("B", "\\boxed{C}", 0.0),
        (mathematics.spelled("1e-05"), "\\boxed{10^{-5}}", 1.0),
    ],
)
def test_the_last_balanced_box_is_the_answer(reference, text, reward):
    assert mathematics.equal(reference, text) == reward


@pytest.mark.parametrize("answer", ["$$", "2^{10000000000000}"])
def test_a_reference_that_is_not_equal_to_itself_is_refused_with_its_row(tmp_path, answer):
    file = tmp_path / "problems.jsonl"
    rows = [{"prompt": "a", "answer": 1e-05}, {"prompt": "b", "answer": answer}]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError, match=r"row 2: 'answer' is not an answer that math-verify finds equal to itself"):
        mathematics.problems(TaskSettings(kind="math", files=(str(file),), seconds=1.0))


def test_what_has_no_value_or_takes_for_ever_is_not_equal_to_itself():
    worker = Worker(mathematics.itself, mathematics.prepare, 0.5, 1024)
    wrong = ["{", "\\frac{1", "1/0", "\\frac{0}{0}", "2^100000000", "10^{10^{10}}"]
    assert not any(worker([(answer,) for answer in wrong]))
    assert all(worker([(answer,) for answer in ("1/2", "2^{100}", "\\infty", "[0,\\infty)")]))
    worker.close()


@pytest.mark.parametrize("answer", ["nan", "NaN", "-inf", "Infinity", math.nan, math.inf])
def test_a_reference_that_is_no_number_is_refused_with_its_row(tmp_path, answer):
    file = tmp_path / "problems.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": "a", "answer": each}) for each in (1, answer)))
    with pytest.raises(ConfigError, match=r"row 2: 'answer' must be a finite number, got"):
        mathematics.problems(TaskSettings(kind="math", files=(str(file),)))


@pytest.mark.parametrize(
    "answer", ["0", "7", "-3", "007", "2.50", "-0.001", "999999999999999", "0.000000000000001", "-0"]
)
def test_a_plain_number_is_equal_to_itself(answer):
    assert mathematics.PLAIN.fullmatch(answer)
    assert mathematics.itself(answer) == 1.0


def test_references_are_verified_once_each_and_how_far_it_is_told(tmp_path):
    file, seen = tmp_path / "problems.jsonl", []
    answers = ["1/2", "3", "\\sqrt{2}", "1/2", "-4.5"] * 400
    file.write_text("\n".join(json.dumps({"prompt": str(i), "answer": a}) for i, a in enumerate(answers)))
    with watched(lambda what, done, total, note: seen.append((what, done, total))):
        sides = mathematics.problems(TaskSettings(kind="math", files=(str(file),)))
    assert sum(side.size for side in sides) == 2000
    assert seen == [("answers verified", done, 2) for done in (0, 1, 2)]
