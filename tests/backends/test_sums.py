import json

import pytest

from firstorder.backends import sums
from firstorder.core.errors import ConfigError, DataError


@pytest.mark.parametrize("style", sums.STYLES)
def test_a_demonstration_is_right_fits_and_ends(style):
    for number in range(300):
        question = sums.prompt(number)
        response = [*sums.encode(sums.demonstrate(question, style)), sums.END]
        assert sums.verify(question, response) == 1.0
        assert len(response) <= sums.LONGEST_RESPONSE


@pytest.mark.parametrize(
    ("text", "reward"),
    [("42", 1.0), ("24>42", 1.0), ("42>24", 0.0), ("042", 0.0), ("", 0.0), ("42>", 0.0), ("4,2", 0.0)],
)
def test_only_an_exact_answer_earns(text, reward):
    assert sums.verify("17+25=", [*sums.encode(text), sums.END]) == reward


def test_a_response_that_was_cut_earns_nothing():
    assert sums.verify("17+25=", sums.encode("42")) == 0.0


def test_held_out_prompts_are_never_trained_on():
    train = {sums.prompt(i) for i in range(3000)}
    held_out = {sums.prompt(i, held_out=True) for i in range(300)}
    assert not train & held_out


def test_prompts_are_a_fixed_sequence():
    assert [sums.prompt(i) for i in range(3)] == [sums.prompt(i) for i in range(3)]
    assert len({sums.prompt(i) for i in range(200)}) > 190


def test_what_has_no_token_is_named():
    with pytest.raises(DataError, match="has no 'x'"):
        sums.encode("1x2=")
    with pytest.raises(ConfigError, match="no style 'stps'; styles: direct, reversed, steps"):
        sums.check_style("stps")


def test_the_tokenizer_of_the_folder_says_what_the_task_says(tmp_path):
    from transformers import AutoTokenizer

    sums.write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "17+25=7+5=12,1+2+1=4>42"
    assert tokenizer(text)["input_ids"] == sums.encode(text)
    assert tokenizer.decode(sums.encode(text)) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (sums.END, sums.PAD)
