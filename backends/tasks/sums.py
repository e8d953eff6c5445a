"""A verifiable task that needs no download: sums of two small numbers as text, one token a character.

A prompt is `17+25=`. A response is worth 1 if what follows its last `>` is the sum and it ended by itself, else 0.
Demonstrations come in three styles: `direct` (`42`), `reversed` (digits from the lowest up, then the answer: `24>42`)
and `steps` (column by column with carries: `7+5=12,1+2+1=4>42`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from firstorder.backends.keys import key
from firstorder.core.errors import ConfigError, DataError

from .chat import write_characters
from .config import TaskSettings
from .problems import ENDLESS, Problem
from .verifiable import Judge

Style = Literal["direct", "reversed", "steps"]
STYLES: tuple[Style, ...] = get_args(Style)
LARGEST = 99
HELD_OUT = 10  # one prompt in so many is never trained on

PAD, END = 0, 1
CHARACTERS = "0123456789+=,>"
TOKENS = ["<pad>", "<end>", *CHARACTERS]
LONGEST_RESPONSE = 24
SYSTEM = ""
PACKAGES: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stream:
    """The training or the held-out stream of prompts; whether a prompt is held out is a hash of its terms."""

    held_out: bool
    size: int = ENDLESS

    def __getitem__(self, row: int) -> Problem:
        """The problem of a row."""
        question = prompt(row, self.held_out)
        return Problem(question, _sum(question))


def problems(settings: TaskSettings) -> tuple[Stream, Stream]:
    """Those that are trained on, and those that are held out, which are one in `HELD_OUT`."""
    return Stream(held_out=False), Stream(held_out=True)


def judge(settings: TaskSettings) -> Judge:
    """1 for an exact answer, else 0."""

    def earned(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [verify(p.question, text) for p, text in zip(problems, texts, strict=True)]

    return earned


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


def verify(question: str, response: str) -> float:
    """1 if the answer of a response is exact, else 0.

    Example:
        >>> verify("17+25=", "24>42"), verify("17+25=", "042")
        (1.0, 0.0)
    """
    return float(response.rpartition(">")[2] == str(_sum(question)))


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
    write_characters(folder, TOKENS[:2], CHARACTERS)


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
