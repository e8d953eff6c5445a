"""Pickles of strangers, read as data: nothing is imported, nothing is called.

A pickle is a program that builds objects. Here a class or function that it names becomes an `Inert` record of the name,
the arguments and the state that it was given; other modules say what such a record means. Names that no dump needs are
refused, and so is an opcode that no pickler of today writes. Bytes and long texts stay views of the file.

Every opcode makes at most one object, so memory is counted while it is taken; lengths are checked against what is left
of the file; there is no recursion.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable, Set
from typing import Any

from firstorder.core.errors import DataError
from firstorder.core.memory import available

from .machine import Inert, Machine
from .names import NAMES
from .words import kind, short

LONG = 4096  # bytes of a text from which on it is not decoded: no key or name is that long
DIGITS = 255  # bytes of a whole number, as many as the short form of the opcode can hold
COST, COST_OF_NUMBER = 120, 40  # bytes of memory that an object costs with its place in a list: a record, a number
SHARE = 2  # one part in so many of the free memory may be taken by objects; arrays are views of the file, and cost none
RUN = re.compile(rb"(?:K.|M..|J....|G.{8}|[N\x88\x89]){4,4096}", re.DOTALL)  # numbers one after the other


def read(data: memoryview, source: str, names: Set[str] = NAMES) -> Any:
    """What a pickle holds: numbers, texts, lists, tuples, dicts, views of bytes, and records of everything else.

    Args:
        data: the pickle.
        source: the file, for people.
        names: of the classes and functions that may be asked for, `module.name`.

    Raises:
        DataError: it is damaged, it asks for another name, or its objects would not fit into memory; one line.
    """
    machine = Machine(data=data.cast("B"), source=source, names=names)
    try:
        return _run(machine)
    except (struct.error, UnicodeDecodeError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise machine.wrong(short(str(error))) from None


def _run(machine: Machine) -> Any:
    data, stack, taken, room = machine.data, machine.stack, 0, available() // SHARE
    whole = len(data)
    while machine.place < whole:
        opcode = data[machine.place]
        if opcode in NUMBERS and (run := RUN.match(data, machine.place)):
            numbers = pickle.loads(b"(" + run.group() + b"t.")  # numbers alone: nothing can be named
            stack.extend(numbers)
            taken += COST_OF_NUMBER * len(numbers)
            machine.place = run.end()
            continue
        machine.place += 1
        if opcode == STOP:
            return machine.pop()
        act = OPCODES.get(opcode)
        if act is None:
            machine.place -= 1
            raise machine.wrong(f"the opcode {bytes([opcode])!r} is not read")
        act(machine)
        taken += COST
        if taken > room:
            raise DataError(
                f"{machine.source}: the objects of its pickle take more than {room / 2**30:.3g} GiB, half of the free "
                "memory; split the dump into more files"
            )
    raise machine.wrong("it ends before its last opcode")


def _long(machine: Machine, size: int) -> None:
    if size < 0 or size > DIGITS:
        raise machine.wrong(f"a whole number of {size:,} bytes is not read")
    machine.push(int.from_bytes(machine.take(size), "little", signed=True))


def _text(machine: Machine, size: int) -> None:
    view = machine.take(size)
    machine.push(str(view, "utf-8", "surrogatepass") if size < LONG else Inert(name="text", args=view))


def _tuple(count: int) -> Callable[[Machine], None]:
    def act(machine: Machine) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(values)))

    return act


def _append(machine: Machine, values: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, list):
        target.extend(values)
    elif isinstance(target, Inert):
        target.items.extend(values)
    else:
        raise machine.wrong(f"it appends to what is {kind(target)}")


def _set(machine: Machine, values: list[Any]) -> None:
    target = machine.top()
    if len(values) % 2:
        raise machine.wrong("a key has no value")
    if isinstance(target, Inert):
        target.items.extend(zip(values[::2], values[1::2], strict=True))
        return
    if not isinstance(target, dict):
        raise machine.wrong(f"it sets items of what is {kind(target)}")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not _plain(key) and not (isinstance(key, tuple) and all(map(_plain, key))):
            raise machine.wrong(f"{kind(key)} is no key that is read")
        target[key] = value


def _plain(key: object) -> bool:
    return key is None or isinstance(key, str | int | float)


def _memoize(machine: Machine, key: int) -> None:
    machine.memo[key] = machine.top()


def _recall(machine: Machine, key: int) -> None:
    if key not in machine.memo:
        raise machine.wrong(f"it refers to object {key:,}, which it never made")
    machine.push(machine.memo[key])


def _named(machine: Machine, module: object, name: object) -> None:
    full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
    if full not in machine.names:
        asked = short(full) or "what is no name"
        raise DataError(
            f"{machine.source}: a pickle that asks for {asked}; only the classes of the format are read, and nothing "
            "is ever run: write the dump without it"
        )
    machine.push(Inert(name=full))


def _global(machine: Machine) -> None:
    parts = []
    for _ in range(2):
        rest = bytes(machine.data[machine.place : machine.place + LONG])
        line, newline, _ = rest.partition(b"\n")
        if not newline:
            raise machine.wrong("a name has no end")
        machine.place += len(line) + 1
        parts.append(line.decode("utf-8"))
    _named(machine, *parts)


def _called(machine: Machine, count: int) -> None:
    """A call, which is written down and not made."""
    args = tuple(reversed([machine.pop() for _ in range(count)]))
    target = machine.pop()
    if not isinstance(target, Inert) or target.args is not None:
        raise machine.wrong("it calls what is no class and no function")
    machine.push(Inert(name=target.name, args=args[0] if count == 1 else args))


def _build(machine: Machine) -> None:
    state, target = machine.pop(), machine.top()
    if not isinstance(target, Inert):
        raise machine.wrong(f"it sets the state of what is {kind(target)}")
    target.state = state


def _discard(machine: Machine) -> None:
    machine.pop()


OPCODES: dict[int, Callable[[Machine], None]] = {
    ord("("): lambda m: m.marks.append(len(m.stack)),
    ord("0"): _discard,
    ord("1"): lambda m: m.above().clear(),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    0x8A: lambda m: _long(m, m.number("<B")),
    0x8B: lambda m: _long(m, m.number("<i")),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    0x8C: lambda m: _text(m, m.number("<B")),
    ord("X"): lambda m: _text(m, m.number("<I")),
    0x8D: lambda m: _text(m, m.number("<Q")),
    ord("C"): lambda m: m.push(m.take(m.number("<B"))),
    ord("B"): lambda m: m.push(m.take(m.number("<I"))),
    0x8E: lambda m: m.push(m.take(m.number("<Q"))),
    0x96: lambda m: m.push(m.take(m.number("<Q"))),
    ord(")"): lambda m: m.push(()),
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    ord("t"): lambda m: m.push(tuple(m.above())),
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: _append(m, [m.pop()]),
    ord("e"): lambda m: _append(m, m.above()),
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: _set(m, [m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: _set(m, m.above()),
    0x8F: lambda m: m.push([]),  # a set, as a list: nothing is hashed
    0x90: lambda m: _append(m, m.above()),
    0x91: lambda m: m.push(m.above()),
    ord("q"): lambda m: _memoize(m, m.number("<B")),
    ord("r"): lambda m: _memoize(m, m.number("<I")),
    0x94: lambda m: _memoize(m, len(m.memo)),
    ord("h"): lambda m: _recall(m, m.number("<B")),
    ord("j"): lambda m: _recall(m, m.number("<I")),
    ord("c"): _global,
    0x93: lambda m: _named(m, *[m.pop(), m.pop()][::-1]),
    ord("R"): lambda m: _called(m, 1),
    0x81: lambda m: _called(m, 1),
    0x92: lambda m: _called(m, 2),
    ord("b"): _build,
    ord("Q"): lambda m: m.push(Inert(name="persistent", args=m.pop())),
    0x80: lambda m: _protocol(m, m.number("<B")),
    0x95: lambda m: _frame(m, m.number("<Q")),
}
STOP = ord(".")
NUMBERS = frozenset(b"KMJG")


def _protocol(machine: Machine, version: int) -> None:
    if not 2 <= version <= 5:
        raise machine.wrong(f"protocol {version} is not read, 2 to 5 are")


def _frame(machine: Machine, size: int) -> None:
    if size > len(machine.data) - machine.place:
        raise machine.wrong(f"{size:,} bytes are announced and {len(machine.data) - machine.place:,} are left")
