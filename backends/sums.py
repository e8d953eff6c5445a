"""A verifiable task that needs no download: sums of two small numbers as text, one token a character.

A prompt is `17+25=`. A response is worth 1 if what follows its last `>` is the sum and it ended by itself, else 0.
Demonstrations come in three styles: `direct` (`42`), `reversed` (digits from the lowest up, then the answer: `24>42`)
and `steps` (column by column with carries: `7+5=12,1+2+1=4>42`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from firstorder.core.errors import ConfigError, DataError
from firstorder.core.record import to_json, write_whole

from .keys import key

Style = Literal["direct", "reversed", "steps"]
STYLES: tuple[Style, ...] = get_args(Style)
LARGEST = 99
HELD_OUT = 10  # one prompt in so many is never trained on

PAD, END = 0, 1
CHARACTERS = "0123456789+=,>"
TOKENS = ["<pad>", "<end>", *CHARACTERS]
LONGEST_RESPONSE = 24


def encode(text: str) -> list[int]:
    """Token ids of a text.

    Raises:
        DataError: a character is not in the vocabulary.
    """
    try:
        return [TOKENS.index(character) for character in text]
    except ValueError:
        unknown = next(c for c in text if c not in CHARACTERS)
        raise DataError(f"the tokenizer of the sums has no {unknown!r}; its characters are {CHARACTERS}") from None


def decode(tokens: list[int]) -> str:
    """The text of token ids, special tokens left out."""
    return "".join(TOKENS[token] for token in tokens if END < token < len(TOKENS))


def prompt(number: int, held_out: bool = False) -> str:
    """The `number`-th prompt of the training or of the held-out stream, each a fixed pseudo-random sequence.

    Example:
        >>> prompt(0) == prompt(0), prompt(0)[-1]
        (True, '=')
    """
    attempt = 0
    while True:
        drawn = key("sums", "held out" if held_out else "train", number, attempt)
        a, b = drawn % (LARGEST + 1), drawn // (LARGEST + 1) % (LARGEST + 1)
        if (key("split", a, b) % HELD_OUT == 0) == held_out:
            return f"{a}+{b}="
        attempt += 1


def verify(question: str, response: list[int]) -> float:
    """1 if the response ended and its answer is exact, else 0."""
    if not response or response[-1] != END:
        return 0.0
    return float(decode(response[:-1]).rpartition(">")[2] == str(_sum(question)))


def demonstrate(question: str, style: Style) -> str:
    """A correct response in a style.

    Example:
        >>> [demonstrate("17+25=", style) for style in STYLES]
        ['42', '24>42', '7+5=12,1+2+1=4>42']
    """
    answer = str(_sum(question))
    if style == "direct":
        return answer
    if style == "reversed":
        return f"{answer[::-1]}>{answer}"
    return f"{','.join(_columns(question))}>{answer}"


def check_style(style: str) -> Style:
    """The style of that name.

    Raises:
        ConfigError: there is none.
    """
    for known in STYLES:
        if style == known:
            return known
    raise ConfigError(f"no style {style!r}; styles: {', '.join(STYLES)}")


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(TOKENS[:2])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": TOKENS[PAD], "eos_token": TOKENS[END]}
    write_whole(folder / "tokenizer_config.json", to_json(names | {"clean_up_tokenization_spaces": False}))


def _terms(question: str) -> tuple[int, int]:
    a, _, b = question.rstrip("=").partition("+")
    return int(a), int(b)


def _sum(question: str) -> int:
    return sum(_terms(question))


def _columns(question: str) -> list[str]:
    a, b = (str(n)[::-1] for n in _terms(question))
    carry, steps = 0, []
    for place in range(max(len(a), len(b))):
        digits = [text[place] for text in (a, b) if place < len(text)] + (["1"] if carry else [])
        total = sum(map(int, digits))
        carry = total // 10
        steps.append(f"{'+'.join(digits)}={total}")
    return steps
