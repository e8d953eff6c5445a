"""What a shell completes: recipes, settings, claims and studies, without importing torch."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from firstorder.core.settings.described import Setting

COMPLETE = "_FIRSTORDER_COMPLETE"  # an environment variable that a shell sets when it wants to complete a line

LITERAL_IDS = {"claims": "Claim", "studies": "Study"}  # the class of what each folder of sim declares


def recipes(incomplete: str) -> list[str]:
    """The shipped recipes that begin so, and files and folders where they are paths."""
    from firstorder.core.settings.toml import shipped

    return [name for name in shipped() if name.startswith(incomplete)] + files(incomplete)


def settings(incomplete: str) -> list[str]:
    """Of `A.B=V` the keys that begin so; of a single one and behind the equals sign, its values, or its default."""
    from firstorder.cli.api.keys import every

    begun, equals, _ = incomplete.partition("=")
    found = [each for each in every() if (each.key == begun if equals else each.key.startswith(begun))]
    if len(found) > 1:
        return [f"{each.key}=" for each in found]
    return [text for each in found for text in _assignments(each) if text.startswith(incomplete)]


def _assignments(setting: Setting) -> list[str]:
    """The assignments of a key that has a list of values; of another its example."""
    from firstorder.core.settings.toml import literal

    values = [each if isinstance(each, str) else literal(each) for each in setting.choices]
    return [f"{setting.key}={value}" for value in values] or [setting.example]


@contextmanager
def bash_words() -> Iterator[None]:
    """Where bash asks for completions: words with an equals sign are whole in the block, and answers without what
    stands before the sign. Bash breaks words there, and puts what is completed behind it."""
    if os.environ.get(COMPLETE) != "complete_bash":
        yield
        return
    os.environ.update(whole_words(os.environ.get("COMP_WORDS", ""), os.environ.get("COMP_CWORD", "0")))
    at, words = int(os.environ["COMP_CWORD"]), os.environ["COMP_WORDS"].split("\n")
    begun, equals, _ = (words[at] if at < len(words) else "").rpartition("=")
    answers = io.StringIO()
    try:
        with redirect_stdout(answers):
            yield
    finally:
        print("\n".join(line.removeprefix(begun + equals) for line in answers.getvalue().splitlines()))


def whole_words(words: str, place: str) -> dict[str, str]:
    r"""The words of a command line as bash reports them for completion, `a.b=c` one word again.

    Args:
        words: of the line, one a line: `COMP_WORDS`.
        place: of the one that is completed: `COMP_CWORD`.

    Example:
        >>> whole_words("firstorder\nmeasure\ngrpo\n--set\nclip.kind\n=\np", "6")
        {'COMP_WORDS': 'firstorder\nmeasure\ngrpo\n--set\nclip.kind=p', 'COMP_CWORD': '4'}
    """
    joined, at = list[str](), int(place)
    for number, word in enumerate(words.split("\n")):
        if joined and "." in joined[-1] and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
            at -= number <= int(place)
        else:
            joined.append(word)
    return {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(at)}


def prefixes(incomplete: str) -> list[str]:
    """The sections and keys that begin so."""
    from firstorder.cli.api.keys import every

    keys = [each.key for each in every()]
    sections = dict.fromkeys(key.rpartition(".")[0] for key in keys)
    return [name for name in (*sections, *keys) if name.startswith(incomplete)]


def claims(incomplete: str) -> list[str]:
    """The claims of `validate` that begin so."""
    return sorted(name for name in declared("claims") if name.startswith(incomplete))


def studies(incomplete: str) -> list[str]:
    """The studies that begin so."""
    return sorted(name for name in declared("studies") if name.startswith(incomplete))


def declared(folder: str) -> Iterator[str]:
    """The ids that the modules of `sim/claims` or `sim/studies` declare, read from their text: to import them takes
    torch and seconds, and a shell waits."""
    import ast
    from importlib import resources

    for text in _texts(resources.files("firstorder.sim") / folder):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == LITERAL_IDS[folder]:
                yield from (
                    str(each.value.value)
                    for each in node.keywords
                    if each.arg == "id" and isinstance(each.value, ast.Constant)
                )


def files(incomplete: str) -> list[str]:
    """The TOML files and the folders that begin so."""
    from pathlib import Path

    folder, _, name = incomplete.rpartition("/")
    place = Path(f"{folder}/" if folder or incomplete.startswith("/") else ".")
    if not place.is_dir():
        return []
    found = [each for each in sorted(place.iterdir()) if each.name.startswith(name) and not each.name.startswith(".")]
    start = incomplete[: len(incomplete) - len(name)]
    return [f"{start}{each.name}{'/' * each.is_dir()}" for each in found if each.is_dir() or each.suffix == ".toml"]


def _texts(folder: Traversable) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _texts(entry)
        elif entry.name.endswith(".py"):
            yield entry.read_text(encoding="utf-8")
