"""The process that runs a test: the test is Python, and the names that it takes from the program are asked for.

Its exit status is the verdict. A program that is gone, or that sends what is no message, ends it at once, so no test
can take that for an exception that it expects.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import socket
import sys

from .forms import names
from .peer import Channel, Peer
from .plain import BASES, TYPES, base_of, decode, encode
from .program import called, rebuilt
from .remote import OWN, Function, kept, remote

TYPE_CHECKING = False  # typing takes as long to import as a test to run
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Table = dict[str, Any]
else:
    Table = dict

PASSED, FAILED, UNJUDGED = 17, 18, 19  # exit statuses that nothing else has
MARK = " changes"  # a name that no test can spell


def judge(test: str, descriptor: int) -> NoReturn:
    """Run a test to its end."""
    side = Judge(Channel(descriptor))
    try:
        asked = names(test)
        scope = Scope(side, asked.program)
        scope.update({name: importlib.import_module(name) for name in asked.modules}, __name__="test")
        scope[MARK] = side.changing
        code = compile(marked(ast.parse(test)), "test", "exec", dont_inherit=True)
        side.hear()  # the program has come to its end
        exec(code, scope)
    except BaseException:
        os._exit(FAILED)
    os._exit(PASSED)


def compare(stdin: str, expected: str, descriptor: int) -> NoReturn:
    """Give a program its input and compare its output, but for white space at the ends of lines and of the whole."""
    import threading

    try:
        with socket.socket(fileno=descriptor) as line:
            threading.Thread(target=_fed, args=(line, stdin.encode()), daemon=True).start()
            limit = 2 * len(expected.encode()) + (1 << 20)
            output = bytearray()
            while len(output) <= limit and (more := line.recv(1 << 16)):
                output += more
            same = len(output) <= limit and _lines(output.decode(errors="replace")) == _lines(expected)
    except BaseException:
        os._exit(FAILED)
    os._exit(PASSED if same else FAILED)


class Scope(Table):
    """The names of a test; those of the program are asked for each time, since they may change."""

    def __init__(self, side: Judge, program: frozenset[str]) -> None:
        super().__init__()
        self._side, self._program = side, program

    def __missing__(self, name: str) -> Any:
        if name not in self._program:
            raise KeyError(name)
        try:
            return self._side.ask("name", name)
        except KeyError:  # not Python's own of that name either
            raise NameError(f"the program has no {name}") from None


class Judge(Peer):
    """The side of the test."""

    trusted = True

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel, {"call": called, "iter": iter, "next": next})

    def changing(self, function: Any) -> Any:
        """A function that, if it is the program's, does to the test's lists what it does to those it is given."""
        if not isinstance(function, Function):
            return function
        return lambda *given, **named: self.asking(True, "call", function, *given, **named)

    def hear(self) -> list[Any]:
        """The next message, or the end."""
        try:
            return self.channel.receive()
        except BaseException:
            os._exit(FAILED)

    def answer(self, message: list[Any]) -> None:
        """Call what the test gave the program, which hears the class of an error and no more."""
        try:
            _, verb, given, named, _ = message
            function, arguments, names = self.verbs[verb], decode(given, self), decode(named, self)
        except BaseException:
            os._exit(FAILED)
        try:
            self.channel.send(["return", encode(function(*arguments, **names), self)])
        except BaseException as error:
            classes = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
            self.channel.send(["raise", classes, ""])

    def outcome(self, message: list[Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What the program gave or raised; and what it did to the lists that it was given."""
        try:
            if message[0] == "raise":
                _, classes, text, printed = message
                raised: BaseException | None = rebuilt(classes, text)
                value = None
            else:
                word, data, printed, changed = message
                value, raised = decode(data, self), None
                if word != "return":
                    os._exit(FAILED)
                if changed:
                    adopt(arguments, decode(changed[0], self))
                    adopt(named, decode(changed[1], self))
            if printed:
                sys.stdout.write(printed)
        except BaseException:
            os._exit(FAILED)
        if raised is not None:
            raise raised
        return value

    def theirs(self, value: Any) -> Any:
        """The number of an object of the program, but the value of a list, which the test may have changed."""
        if not getattr(value, "__dict__", {}).keys() >= OWN:
            return None
        base = base_of(value)
        return encode(BASES[base](value), self) if base in (list, dict, set) else ["yours", vars(value)["_number"]]

    def hold(self, value: Any) -> list[Any]:
        """A number for a function or an iterator of the test; nothing else of it crosses."""
        if not callable(value) and not hasattr(value, "__next__"):
            os._exit(UNJUDGED)
        self.kept.append(value)
        return ["remote", len(self.kept) - 1, "c" if callable(value) else ""]

    def held(self, tag: str, number: int, rest: list[Any]) -> Any:
        """What a number stands for."""
        if tag == "yours":
            return self.kept[number]
        if tag == "remote":
            return remote(self, number, rest[0])
        value = decode(rest[0], self)
        if tag != "kept" or type(value) not in BASES:
            raise ValueError(tag)
        return kept(self, number, value)

    def named(self, name: str) -> Any:
        """A built-in type, since a function that is called with what the test knows would run here."""
        if name not in TYPES:
            raise ValueError(name)
        return getattr(builtins, name)


def adopt(old: Any, new: Any) -> Any:
    """What was handed out, made what it has become, in place where it can be."""
    if type(old) is not type(new):
        return new
    if isinstance(old, (list, tuple)):
        merged = [adopt(a, b) for a, b in zip(old, new, strict=False)] + list(new[len(old) :])
        if isinstance(old, tuple):
            return new if any(a is not b for a, b in zip(old, merged, strict=False)) else old
        old[:] = merged
    elif isinstance(old, dict):
        merged_items = {key: adopt(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(merged_items)
    elif isinstance(old, set):
        old.clear()
        old.update(new)
    else:
        return new
    return old


def marked(tree: ast.Module) -> ast.Module:
    """A test whose statements that are one call, or assign one, let that call change what it is given."""
    _Marker().visit(tree)
    return ast.fix_missing_locations(tree)


class _Marker(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return _within(node, node.value)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        return _within(node, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return _within(node, node.value)


def _within(node: ast.stmt, value: ast.expr | None) -> ast.AST:
    call = value.value if isinstance(value, ast.Await) else value
    if isinstance(call, ast.Call):
        inner = [each for argument in (*call.args, *call.keywords) for each in ast.walk(argument)]
        nested = [each.func for each in inner if isinstance(each, ast.Call)]
        if all(isinstance(each, ast.Name) and hasattr(builtins, each.id) for each in nested):
            call.func = ast.Call(ast.Name(MARK, ast.Load()), [call.func], [])
    return node


def _fed(line: socket.socket, data: bytes) -> None:
    try:
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # a program may end without having read it all


def _lines(text: str) -> list[str]:
    return [each.rstrip() for each in text.rstrip().splitlines()]
