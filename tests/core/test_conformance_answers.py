"""A file of answers is compared with the golden vectors, and read with suspicion."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.conformance.answer import expected_leaves, load
from firstorder.core.conformance.check import compare, compared, excess, furthest
from firstorder.core.conformance.shipped import shipped, source
from firstorder.core.errors import DataError

VECTORS = shipped()
EXPECTED = VECTORS["expected"]


def answered(tmp_path, change=lambda tree: None, **keys):
    tree = {"schema": VECTORS["schema"], "version": VECTORS["version"], "framework": "other"}
    tree["answers"] = json.loads(json.dumps(EXPECTED))
    change(tree["answers"])
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(tree | keys))
    return path


def test_the_vectors_agree_with_themselves(tmp_path):
    found = compare(load(answered(tmp_path), VECTORS), VECTORS)
    assert len(found) == len(dict(expected_leaves(EXPECTED)))
    assert furthest(found) is None


def test_some_answers_are_compared_alone(tmp_path):
    def some(tree):
        tree["methods"] = {"gspo": {"masks": {"gradient": tree["methods"]["gspo"]["masks"]["gradient"]}}}
        tree["metrics"] = {"long": {"kl": tree["metrics"]["long"]["kl"]}}
        del tree["advantages"], tree["terms"]

    found = compare(load(answered(tmp_path, some), VECTORS), VECTORS)
    assert [row.path for row in found] == [("methods", "gspo", "masks", "gradient"), ("metrics", "long", "kl")]


def test_the_largest_difference_says_where_it_is(tmp_path):
    def wrong(tree):
        tree["methods"]["gspo"]["masks"]["gradient"][1][2] += 1e-3
        tree["methods"]["minirl"]["long"]["weight"][0][5] += 1e-6
        tree["methods"]["minirl"]["long"]["weight"][0][6] += 1e-8  # within the tolerance

    found = compare(load(answered(tmp_path, wrong), VECTORS), VECTORS)
    assert sum(row.worst is not None for row in found) == 2
    worst = furthest(found)
    assert str(worst).startswith("gradient of method gspo, case masks, response 1, token 2: got ")
    assert worst.excess == pytest.approx(1e4, rel=1e-6)


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
def test_a_program_that_says_nan_or_infinity_differs(tmp_path, word):
    def says(tree):
        tree["methods"]["grpo"]["impossible_token"]["loss"] = word

    worst = furthest(compare(load(answered(tmp_path, says), VECTORS), VECTORS))
    assert worst.excess == math.inf
    assert f"got {word}" in str(worst)


WRONG = {
    "method": (lambda t: t["methods"].update(gpso={}), r"answers/methods has no method 'gpso'; did you mean 'gspo'\?"),
    "case": (lambda t: t["methods"]["gspo"].update(mask={}), r"no case 'mask'; did you mean 'masks'\?"),
    "output": (lambda t: t["methods"]["gspo"]["masks"].update(grad=1), "no output 'grad'"),
    "metric": (lambda t: t["metrics"]["long"].update(k3=1.0), "no metric 'k3'"),
    "section": (lambda t: t.update(method={}), r"no section 'method'; did you mean 'methods'\?"),
    "rows": (lambda t: t["methods"]["gspo"]["masks"]["weight"].pop(), "weight must be a list of 4 .* got 3"),
    "tokens": (lambda t: t["methods"]["gspo"]["masks"]["weight"][1].pop(), r"weight\[1\] must be a list of 7 .* got 6"),
    "scalar": (lambda t: t["methods"]["gspo"]["masks"].update(loss=[0.1]), r"loss must be a number.*got \[0.1\]"),
    "bool": (lambda t: t["methods"]["gspo"]["masks"].update(loss=True), "loss must be a number.*got True"),
    "text": (lambda t: t["methods"]["gspo"]["masks"].update(loss="0.1"), "loss must be a number.*got '0.1'"),
    "NaN": (lambda t: t["methods"]["gspo"]["masks"].update(loss=math.nan), 'NaN is not JSON; write the text "nan"'),
    "Infinity": (lambda t: t["metrics"]["long"].update(kl=-math.inf), 'write the text "-inf"'),
    "digits": (lambda t: t["metrics"]["long"].update(kl=10**4000), "a number that float64 can hold"),
    "table": (lambda t: t["methods"].update(gspo=[1]), r"answers/methods/gspo must be an object, got \[1\]"),
    "nothing": (lambda t: t.clear(), "answers nothing"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_answer_that_the_vectors_do_not_know_is_refused_in_a_line(tmp_path, what):
    change, message = WRONG[what]
    path = answered(tmp_path, change)
    with pytest.raises(DataError, match=message) as refused:
        load(path, VECTORS)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


HEAD = b'{"schema": "firstorder.conformance/1", "version": 1, '
HOSTILE = {
    "not JSON": b"{",
    "no text": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "empty": b"",
    "a long number": b'{"schema": ' + b"9" * 100_000 + b"}",
    "too large a number": HEAD + b'"answers": {"metrics": {"long": {"kl": 1e999}}}}',
    "a name of controls": HEAD + b'"framework": "\\u001b[31m", "answers": {}}',
    "another version": HEAD.replace(b"1, ", b"99, ") + b'"answers": {}}',
    "another schema": HEAD.replace(b"firstorder", b"other") + b'"answers": {}}',
    "the vectors themselves": source().encode(),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_is_no_answer_is_refused_in_a_line(tmp_path, what):
    path = tmp_path / "answers.json"
    path.write_bytes(HOSTILE[what])
    with pytest.raises(DataError) as refused:
        load(path, VECTORS)
    assert "answers.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_a_folder_or_too_large_is_refused(tmp_path, monkeypatch):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(DataError):
            load(path, VECTORS)
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(DataError, match="answers have at most"):
        load(large, VECTORS)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["methods", "gspo", "masks", "loss", "weight", "metrics", "x"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_is_an_answer_or_a_line(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("any") / "answers.json"
    path.write_text(json.dumps({"schema": VECTORS["schema"], "version": VECTORS["version"], "answers": tree}))
    message = ""
    try:
        compare(load(path, VECTORS), VECTORS)
    except DataError as refused:
        message = str(refused)
    assert "\n" not in message


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(1e-12, 1.0))
def test_a_number_agrees_with_itself_and_not_beyond_its_tolerance(x, tolerance):
    assert excess(x, x, tolerance) == 0
    other = x + 4 * tolerance * max(1.0, abs(x))
    assert excess(other, x, tolerance) > 1 or not math.isfinite(other)


def test_a_difference_of_receipts_and_of_advantages_says_where():
    receipt = compared(("methods", "gspo", "long", "receipts", "clip_upper"), [3, 140], [4, 140], 1e-7).worst
    assert str(receipt) == "receipts clip_upper of method gspo, case long: got 3, expected 4"
    rule = compared(("advantages", "group_mean", "pair", "advantage"), [[0.5, 0.5]], [[0.5, -0.5]], 1e-7).worst
    assert str(rule) == "advantage of rule group_mean, group pair, group 0, response 1: got 0.5, expected -0.5"
