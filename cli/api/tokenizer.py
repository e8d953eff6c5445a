"""The texts of tokens from a tokenizer.json, without the library that wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

MOST = 256 << 20  # bytes of a file


def token_texts(file: Path) -> Callable[[int], str]:
    """From a token id to its text, `#7` for an id that the file does not name.

    Args:
        file: as the `tokenizers` library writes it, of any kind that lists its vocabulary.

    Raises:
        ConfigError: it cannot be read, or lists no vocabulary.
    """
    from firstorder.core.errors import ConfigError

    try:
        if file.stat().st_size > MOST:
            raise ConfigError(f"{file} is larger than {MOST >> 20} MiB; give a tokenizer.json")
        known = _vocabulary(json.loads(file.read_bytes()))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; give a tokenizer.json") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"{file} lists no vocabulary; give a tokenizer.json") from None
    letters = _letters()

    def text(token: int) -> str:
        if token not in known:
            return f"#{token}"
        word = known[token]
        if all(letter in letters for letter in word):  # bytes written as printable letters, as GPT-2 does
            return bytes(letters[letter] for letter in word).decode(errors="replace")
        return word.replace("▁", " ")

    return text


def _vocabulary(whole: Any) -> dict[int, str]:
    """Texts by id: those of the model, a table or a list of pairs, and those that were added."""
    listed = whole["model"]["vocab"]
    pairs = listed.items() if isinstance(listed, dict) else ((pair[0], place) for place, pair in enumerate(listed))
    added = ((each["content"], each["id"]) for each in whole.get("added_tokens") or ())
    return {int(place): str(word) for word, place in (*pairs, *added)}


@cache
def _letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: printable ones themselves, the others from 256
    on in their order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
