from firstorder.core.audit.finding import Finding
from firstorder.core.audit.verdict import verdict

COUNTS = {"responses": 1200, "tokens_sampled": 34567, "steps": 3}
SHIFTED = Finding(
    fault="off by one",
    evidence="mean |D| is 2.1 nats as the rows stand and 0.01 with one array moved by a token.",
    where="rank_0.jsonl line 1",
    questions=("which array starts a token early?", "since which version of the writer?"),
)
WARM = Finding(fault="temperature", evidence="D has a slope of 0.3 on log p.", questions=("a?", "b?"))


def test_a_dump_without_a_finding_is_normal_and_says_how_much_was_seen():
    found = verdict((), COUNTS, (), "KL is 1.5e-3 nats a token.")
    assert found.fault is None
    assert found.paragraph == (
        "Normal: 1,200 responses with 34,567 sampled tokens of 3 steps. KL is 1.5e-3 nats a token."
    )
    assert len(found.questions) == 2


def test_the_first_finding_leads_and_the_others_are_to_be_asked_again():
    found = verdict((SHIFTED, WARM, WARM), COUNTS, (), "")
    assert found.fault == "off by one"
    assert found.paragraph.startswith("Off by one: mean |D| is 2.1 nats")
    assert "It is first seen in rank_0.jsonl line 1." in found.paragraph
    assert found.paragraph.count("temperature") == 1
    assert found.questions == SHIFTED.questions


def test_engines_that_cannot_be_compared_are_not_called_normal():
    found = verdict((), COUNTS, ("log-probs of the trainer",), "")
    assert found.fault is None
    assert "Normal" not in found.paragraph
    assert "cannot be compared: the dump has no log-probs of the trainer." in found.paragraph
