"""Problems from files and generators, which are held out, and what a wrong file says."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from firstorder.backends.keys import shuffled
from firstorder.backends.tasks import code, mathematics, sums, text
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.tasks.guess import Games, earned
from firstorder.backends.tasks.problems import Generated, Problem, is_held_out, read, split
from firstorder.core.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


def anything(answer):
    return ""


def settings(kind, file, **more):
    return TaskSettings(kind=kind, files=(str(file),), **more)


def written(folder, *rows):
    file = folder / "problems.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_jsonl_and_parquet_hold_the_same_problems(tmp_path):
    rows = [{"q": f"{i}\u2028?", "tests": [f"assert {i}", "pass"], "more": None} for i in range(5)]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
    found = read([str(lines)], "q", "tests", anything)
    assert found == [Problem(row["q"], row["tests"]) for row in rows]
    assert read([str(tmp_path / "table.parquet")], "q", "tests", anything) == found
    assert len(read([str(lines), str(lines)], "q", "tests", anything)) == 10


def test_a_question_is_on_one_side_and_sides_are_of_the_share():
    problems = [Problem(str(i % 3000), i) for i in range(4000)]
    train, held_out = split(problems, 0.2)
    questions = [{side[row].question for row in range(side.size)} for side in (train, held_out)]
    assert not questions[0] & questions[1]
    assert train.size + held_out.size == 4000
    assert 0.17 < len(questions[1]) / 3000 < 0.23
    order = [train[row].question for row in range(train.size)]
    again, _ = split(problems[::-1], 0.2)
    assert order == [again[row].question for row in range(again.size)]
    assert order != sorted(order, key=int)


def test_generated_problems_are_fixed_and_on_their_side():
    sides = [
        Generated(lambda number: Problem(str(number % 500), number), side, 0.2, "numbers") for side in (False, True)
    ]
    found = [[side[row].question for row in range(400)] for side in sides]
    assert found == [[side[row].question for row in range(400)] for side in sides]
    assert not set(found[0]) & set(found[1])
    assert all(is_held_out(question, 0.2) for question in found[1])
    assert len(set(found[0])) > 200


def test_a_side_without_a_question_is_named():
    one = Generated(lambda number: Problem("the same", 0), not is_held_out("the same", 0.5), 0.5, "one question")
    with pytest.raises(ConfigError, match=r"one question has too few questions for task.held_out = 0.5"):
        one[0]
    with pytest.raises(ConfigError, match="both sides need at least one"):
        split([Problem("the same", 0)], 0.5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", r"line 1 must be an object, got \[1\]"),
        (
            {"question": "?", "answer": "1"},
            "row 1 has no 'prompt'; its columns are question, answer: set task.prompt_column",
        ),
        ({"prompt": " ", "answer": "1"}, "'prompt' must be a text, got ' '"),
        ({"prompt": "?", "answer": None}, "'answer' must be a text or a number, got None"),
        ({"prompt": "?", "answer": True}, "'answer' must be a text or a number, got True"),
    ],
)
def test_a_wrong_file_says_where(tmp_path, row, message):
    with pytest.raises(ConfigError, match=message):
        mathematics.problems(settings("math", written(tmp_path, row)))


@pytest.mark.parametrize(("module", "kind"), [(code, "code"), (text, "text")])
@pytest.mark.parametrize("answer", [[], 3, [1], [""], {"a": 1}])
def test_tests_and_references_are_texts(tmp_path, module, kind, answer):
    with pytest.raises(ConfigError, match="'answer' must be a"):
        module.problems(settings(kind, written(tmp_path, {"prompt": "?", "answer": answer})))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*nothing.jsonl: No such file"):
        mathematics.problems(settings("math", tmp_path / "nothing.jsonl"))
    (tmp_path / "no.parquet").write_text("x")
    with pytest.raises(ConfigError, match="is not a Parquet file"):
        mathematics.problems(settings("math", tmp_path / "no.parquet"))


def test_a_kind_without_its_files_and_files_without_their_kind_are_refused():
    with pytest.raises(ValueError, match=r"reads its problems from files; set task.files"):
        TaskSettings(kind="math")
    with pytest.raises(ValueError, match=r"makes its own problems; drop task.files"):
        TaskSettings(kind="sums", files=("x",))


def test_the_example_programs_pass_and_fail_as_they_should():
    given = settings("code", EXAMPLES / "code.jsonl", prompt_column="prompt", answer_column="tests", held_out=0.3)
    sides = code.problems(given)
    problems = [side[row] for side in sides for row in range(side.size)]
    double = next(p for p in problems if "double" in p.question)
    answers = ["```python\ndef double(x):\n    return 2 * x\n```", "def double(x):\n    return x * x", "no idea"]
    assert code.judge(given)([double] * 3, answers) == pytest.approx([1.0, 2 / 3, 0.0])


def test_rewards_of_texts_are_rouge_of_the_best_reference():
    judge = text.judge(settings("text", "unused"))
    problems = [Problem("", ["a b c d", "x y"])] * 5
    said = ["X, y!", "a c", "<think>x y</think> a b c d", "", "z"]
    assert judge(problems, said) == pytest.approx([1.0, 2 * 2 / 6, 1.0, 0.0, 0.0])
    assert judge([], []) == []


def test_a_guess_earns_less_the_later_it_hits():
    assert [earned(7, ["1"] * k + ["it is 7"], 4) for k in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert earned(7, ["none", "7 or 8"], 4) == 0.0
    games = [Games(30, side, 0.3) for side in (False, True)]
    hidden = [{game[row].reference for row in range(300)} for game in games]
    assert hidden[0] | hidden[1] == set(range(1, 31))
    assert not hidden[0] & hidden[1]
    with pytest.raises(ConfigError, match=r"task.largest = 1 leaves no number"):
        [Games(1, side, 0.3)[0] for side in (False, True)]


@pytest.mark.parametrize("size", [1, 2, 5, 64, 100])
def test_epochs_hold_every_row_once_and_differ(size):
    epochs = [[shuffled(epoch * size + i, size, 3) for i in range(size)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] == list(range(size))
    assert size < 64 or len({tuple(epoch) for epoch in epochs}) == 4
    assert size < 64 or epochs[1] != [shuffled(size + i, size, 4) for i in range(size)]


@pytest.mark.parametrize("style", sums.STYLES)
def test_a_demonstration_is_right_fits_and_ends(style):
    for number in range(300):
        question = sums.prompt(number)
        response = sums.demonstrate(question, style)
        assert sums.verify(question, response) == 1.0
        assert len(sums.encode(response)) < sums.LONGEST_RESPONSE


@pytest.mark.parametrize(
    ("text", "reward"),
    [("42", 1.0), ("24>42", 1.0), ("42>24", 0.0), ("042", 0.0), ("", 0.0), ("42>", 0.0), ("4,2", 0.0)],
)
def test_only_an_exact_answer_earns(text, reward):
    assert sums.verify("17+25=", text) == reward


def test_held_out_sums_are_never_trained_on():
    train, held_out = ({side[i].question for i in range(3000)} for side in sums.problems(TaskSettings(kind="sums")))
    assert not train & held_out
    assert len({sums.prompt(i) for i in range(200)}) > 190
