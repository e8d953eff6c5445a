"""Files that are broken at random: a reader gives samples or names the line, and never raises anything else."""

import json
import random
import re

from firstorder.core.errors import DataError
from firstorder.core.formats.format import Options
from firstorder.core.formats.sample import Sample

ODD = [
    None,
    True,
    -1,
    0,
    1,
    2**70,
    10**400,
    1e308,
    0.5,
    "",
    "AAAA",
    "nrlre1:int8:1x1x1:AA==",
    [],
    [[]],
    [1],
    {},
    {"a": 1},
]
BYTES = b'[]{},:"0123456789-.eE \n\\nultrefasAQ=\x00\xff'


def broken(content, seed):
    """The file with one to three of: cut off, bytes changed, a value changed, lines removed or doubled."""
    dice = random.Random(seed)
    for _ in range(dice.randint(1, 3)):
        content = dice.choice((_cut, _bytes, _value, _value, _value, _lines))(content, dice)
    return content


def outcome(format, path, options=None):
    """The samples of a file, or the error that it is refused with, which must name the file and a line."""
    try:
        samples = list(format.read([path], options or Options()))
    except DataError as error:
        message = str(error)
        assert re.match(re.escape(str(path)) + r" line \d+", message), message
        assert "\n" not in message
        assert len(message) < 400 + len(str(path))
        return message
    assert all(isinstance(sample, Sample) for sample in samples)
    return samples


def _cut(content, dice):
    return content[: dice.randrange(len(content) + 1)]


def _bytes(content, dice):
    held = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        if held:
            held[dice.randrange(len(held))] = dice.choice(BYTES)
    return bytes(held)


def _lines(content, dice):
    held = content.splitlines(keepends=True)
    if not held:
        return content
    place = dice.randrange(len(held))
    return b"".join(held[:place] + dice.choice(([], [held[place]] * 2, [b"\n"], [b"[]\n"])) + held[place + 1 :])


def _value(content, dice):
    held = content.splitlines(keepends=True)
    if not held:
        return content
    place = dice.randrange(len(held))
    try:
        value = json.loads(held[place])
    except ValueError:
        return content
    held[place] = (json.dumps(_changed(value, dice)) + "\n").encode()
    return b"".join(held)


def _changed(value, dice):
    """One value in the tree, or a field's name, is another."""
    if isinstance(value, dict) and value and dice.random() < 0.95:
        name = dice.choice(sorted(value))
        if dice.random() < 0.1:
            return {n: v for n, v in value.items() if n != name}
        return value | {name: _changed(value[name], dice)}
    if isinstance(value, list) and value and dice.random() < 0.7:
        place = dice.randrange(len(value))
        if dice.random() < 0.2:
            return value[:place] + value[place + 1 :]
        return [*value[:place], _changed(value[place], dice), *value[place + 1 :]]
    if isinstance(value, str) and len(value) > 8 and dice.random() < 0.6:
        place = dice.randrange(len(value))
        return value[:place] + dice.choice("A=/+x:0-") + value[place + dice.randint(0, 2) :]
    return dice.choice(ODD)
