"""A model folder's tokenizer and chat template: texts to token ids and back, and the tokens that end a turn.

What was sampled is never decoded and encoded again: an environment's answer is encoded alone and joins the tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from firstorder.backends.extras import require
from firstorder.backends.folder import read_config, read_shape
from firstorder.core.errors import ConfigError, DataError
from firstorder.core.runs.files import to_json, write_whole

PRIVATE = range(0xE000, 0xF900)  # characters that mean nothing by themselves, and can stand for a text in a template
MARKS = ("<think>", "</think>", "<answer>", "</answer>")  # which verifiers look for, whatever a tokenizer makes of them


@dataclass(frozen=True)
class Chat:
    """How a model is talked to.

    Args:
        tokenizer: of transformers.
        ends: the tokens that end a response.
        folder: where it is from.
    """

    tokenizer: Any
    ends: tuple[int, ...]
    folder: Path

    def prompt(self, system: str, question: str) -> list[int]:
        """Token ids of a question: by the chat template, or as plain text below `system`.

        Raises:
            DataError: a character has no token.
        """
        if not self.tokenizer.chat_template:
            return self._encode("\n\n".join(filter(None, (system, question))), special=True, said=True)
        (mark,) = self._unused(1, (system, question))
        return self._turns(self._rendered(system, [question], mark), [system, question], mark)

    def answer(self, text: str) -> list[int]:
        """Token ids of what the environment says after an end token, up to where the next turn begins.

        Raises:
            DataError: a character has no token, or the template does not end a turn with an end token.
        """
        if not self.tokenizer.chat_template:
            return self._encode(f"\n{text}\n", special=False, said=True)
        mark, said = self._unused(2, (text,))
        rest = self._rendered("", ["question", said, text], mark).rpartition(said)[2]
        for end in self.tokenizer.convert_ids_to_tokens(list(self.ends)):
            if end and rest.startswith(end):
                return self._turns(rest.removeprefix(end), [text], mark)
        raise DataError(
            f"the chat template of {self.folder} does not end a turn with one of its end tokens {list(self.ends)}; "
            "name that token in eos_token_id of its generation_config.json"
        )

    def text(self, tokens: Sequence[int]) -> str:
        """What sampled tokens say, special tokens left out but for those of thoughts and answers."""
        known = [token for token in tokens if token < len(self.tokenizer) and token not in self._silent]
        return str(self.tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether sampled tokens end by themselves."""
        return bool(tokens) and tokens[-1] in self.ends

    @cached_property
    def _silent(self) -> frozenset[int]:
        return frozenset(
            i for i in self.tokenizer.all_special_ids if self.tokenizer.convert_ids_to_tokens(i) not in MARKS
        )

    @cached_property
    def _special(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(
            dict.fromkeys([*map(str, self.tokenizer.all_special_tokens), *(str(t) for t in added if t.special)])
        )

    def _spells(self, text: str) -> bool:
        return any(token in text for token in self._special)

    def _unused(self, count: int, texts: Sequence[str]) -> list[str]:
        """Characters that neither the texts nor the template nor a special token has.

        Raises:
            DataError: there are too few.
        """
        used = set().union(*texts, *self._special, str(self.tokenizer.chat_template))
        unused = [character for character in map(chr, PRIVATE) if character not in used][:count]
        if len(unused) < count:
            raise DataError(
                f"a text of the task uses all {len(PRIVATE)} private-use characters U+E000 to U+F8FF, of which the "
                "chat template needs one as a placeholder; remove one"
            )
        return unused

    def _turns(self, rendered: str, texts: Sequence[str], mark: str) -> list[int]:
        """Token ids of a template around texts; those that spell a special token are encoded alone, as text.

        Raises:
            DataError: the template leaves such a text out, or says it twice.
        """
        first, *rest = rendered.split(mark)
        spelling = [text for text in texts if self._spells(text)]
        if len(rest) != len(spelling):
            raise DataError(
                f"the chat template of {self.folder} contains {len(rest)} of {len(spelling)} texts that spell a "
                "special token, and must contain each once; correct the template or the task's texts"
            )
        ids = self._encode(first, special=False)
        for text, after in zip(spelling, rest, strict=True):
            ids += self._encode(text, special=False, said=True)
            ids += self._encode(after, special=False) if after else []
        return ids

    def _rendered(self, system: str, turns: Sequence[str], mark: str) -> str:
        """The template around texts; `mark` stands for one that spells a special token."""
        contents = [mark if self._spells(text) else text for text in turns]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
        if system:
            messages.insert(0, {"role": "system", "content": mark if self._spells(system) else system})
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _encode(self, text: str, special: bool, said: bool = False) -> list[int]:
        """Token ids; with `said`, a special token's spelling is text."""
        encoded = self.tokenizer(text, add_special_tokens=special, split_special_tokens=said)
        ids: list[int] = encoded["input_ids"]
        if self._unknown.intersection(ids):
            lost = next((c for c in text if self._unknown.intersection(self._plain(c))), text)
            raise DataError(
                f"the tokenizer of {self.folder} has no token for {lost!r}, which the task uses; give a model that "
                "knows it, or another task.kind (the small model of `firstorder coldstart` knows task.kind = sums)"
            )
        return ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def _unknown(self) -> frozenset[int]:
        """What characters without a token become; a tokenizer that knows all bytes has none."""
        ids = self._plain("\ue000")
        unknown = {self.tokenizer.unk_token_id, self.tokenizer.pad_token_id}
        return frozenset(token for token in ids if token in unknown)


def read_chat(folder: Path) -> Chat:
    """The tokenizer of a model folder, without looking anywhere else.

    Raises:
        ConfigError: it is missing or broken, has more ids than the model, or nothing ends a response.
    """
    require("transformers")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in files):
        raise ConfigError(
            f"{folder} has no tokenizer; copy tokenizer.json and tokenizer_config.json of the model there"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds, by what is broken
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"the tokenizer of {folder} does not load: {reason[0] if reason else type(error).__name__}; copy the "
            "model's tokenizer files there again"
        ) from None
    vocab_size = read_shape(folder).vocab_size
    if len(tokenizer) > vocab_size:
        raise ConfigError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens, the model {vocab_size}; they do not match: give "
            "a folder whose tokenizer is the model's"
        )
    return Chat(tokenizer, _ends(folder, tokenizer, vocab_size), folder)


def write_characters(folder: Path, special: Sequence[str], characters: str) -> None:
    """Write a tokenizer of one token a character, after the special tokens, the first two of which pad and end."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    names = [*special, *characters]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(names)}, unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": special[0], "eos_token": special[1]}
    write_whole(folder / "tokenizer_config.json", to_json(config | {"clean_up_tokenization_spaces": False}))


def _ends(folder: Path, tokenizer: Any, vocab_size: int) -> tuple[int, ...]:
    """The end tokens: of generation_config.json, of config.json, or the tokenizer's own, whichever is first."""
    generation = folder / "generation_config.json"
    tables = [read_config(folder, generation.name)] if generation.is_file() else []
    tables += [read_config(folder), {"eos_token_id": tokenizer.eos_token_id}]
    declared = next((t["eos_token_id"] for t in tables if t.get("eos_token_id") is not None), None)
    ends = tuple(declared) if isinstance(declared, list) else (declared,)
    if not all(isinstance(end, int) and 0 <= end < vocab_size for end in ends) or not ends:
        raise ConfigError(
            f"the end token of {folder} is {declared!r}, which the model does not have; set eos_token_id in its "
            "generation_config.json"
        )
    return ends
