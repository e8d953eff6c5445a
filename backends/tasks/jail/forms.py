"""Which names a test takes from the program, and which forms of a test cannot be judged apart from it."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import symtable
import sys
from collections import namedtuple
from collections.abc import Iterator

HIDDEN = {"eval", "exec", "globals", "locals"}  # they name what is not seen here

CLASSES = {"isinstance": 1, "issubclass": 1, "assertIsInstance": 1, "raises": 0, "assertRaises": 0}  # which argument

Names = namedtuple("Names", ("program", "modules"))
"""Names that a test uses and does not define: of the program, and modules that it need not import, frozen sets."""


def names(test: str) -> Names:
    """The names of a test.

    Python's own names are Python's, whatever the program calls so, unless there is no other: `assert sum(10, 15) == 6`
    asks the program for its `sum`. A module of the standard library is that module unless it is called.

    Raises:
        SyntaxError: it is no Python.

    Example:
        >>> sorted(names("assert math.isclose(abs(f(2)), g)").program)
        ['f', 'g']
    """
    free = _free(symtable.symtable(test, "test", "exec"))
    called = _called(ast.parse(test))
    modules = frozenset(name for name in free & sys.stdlib_module_names if name not in called)
    program = frozenset(name for name in free - modules if not hasattr(builtins, name))
    own = [name for name in free - modules if name in called and hasattr(builtins, name)]
    return Names(program or (frozenset(own) if len(own) == 1 else frozenset()), modules)


def unjudged(test: str) -> str:
    """Why a test cannot be judged, or "".

    Example:
        >>> unjudged("assert f(2) == 4"), unjudged("assert 2 == 2")
        ('', 'uses no name of the program')
    """
    try:
        tree, program = ast.parse(test), names(test).program
    except (SyntaxError, ValueError, RecursionError) as error:
        return f"is no Python: {error}"
    if not program:
        return "uses no name of the program"
    return next((reason for node in ast.walk(tree) for reason in _reasons(node, program, tree)), "")


def _free(table: symtable.SymbolTable) -> frozenset[str]:
    """Names of all scopes that are looked up outside of the test."""
    scopes = [table]
    used: set[str] = set()
    defined: set[str] = set()
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        for symbol in scope.get_symbols():
            top = scope is table or symbol.is_global()
            if top and symbol.is_referenced():
                used.add(symbol.get_name())
            if top and (symbol.is_assigned() or symbol.is_imported()):
                defined.add(symbol.get_name())
    return frozenset(used - defined)


def _reasons(node: ast.AST, program: frozenset[str], tree: ast.Module) -> Iterator[str]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from _imports(node)
    elif isinstance(node, ast.Name) and node.id in HIDDEN:
        yield f"uses {node.id}, which does not see the program's names; write them out"
    elif isinstance(node, ast.Attribute):
        name = _name(node.value)
        if name in program and name not in _called(tree) and not name[0].isupper():
            yield f"takes {name}.{node.attr} from the program; import {name} in the test"
    elif isinstance(node, ast.Assert):
        yield from _verdicts(node.test, program)
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
        left, right = _function(node.left), _function(node.comparators[0])
        if left in program and left == right and left[0].isupper():
            yield f"compares two of the program's {left} by its own comparison; compare their attributes"
    elif isinstance(node, ast.ExceptHandler) and node.type:
        for name in _within([node.type]) & program:
            yield f"catches the program's {name}; catch the built-in class that it is derived from"
    elif isinstance(node, ast.Call):
        yield from _arguments(node, program, tree)


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    module = getattr(node, "module", None)
    modules = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
    for name in modules:
        if name.startswith("unittest.mock"):
            yield "imports unittest.mock, whose patches do not reach the program"
        elif getattr(node, "level", 0) or not _is_found(name.partition(".")[0]):
            yield f"imports {module or name}, which is not installed here; the program's names need no import"


def _verdicts(verdict: ast.expr, program: frozenset[str]) -> Iterator[str]:
    """Where what the program says of itself is all that counts."""
    while isinstance(verdict, ast.UnaryOp) and isinstance(verdict.op, ast.Not):
        verdict = verdict.operand
    name = _function(verdict)
    if name in program and isinstance(verdict, ast.Call):
        inner = {_function(each) for argument in verdict.args for each in ast.walk(argument)}
        if inner & program:
            yield f"lets the program's {name} judge the program; import {name} in the test, or compare"


def _arguments(call: ast.Call, program: frozenset[str], tree: ast.Module) -> Iterator[str]:
    """Classes of one side that the other would be given."""
    last = call.func.attr if isinstance(call.func, ast.Attribute) else _name(call.func)
    if last in CLASSES and _within(call.args[CLASSES[last] :][:1]) & program:
        yield f"gives {last} a class of the program; name a built-in one"
    if _function(call) in program:
        own = {each.name for each in ast.walk(tree) if isinstance(each, ast.ClassDef)}
        for name in own & {_function(each) for argument in call.args for each in ast.walk(argument)}:
            yield f"gives the program a {name}, a class of the test; give plain values"


def _called(tree: ast.Module) -> set[str]:
    return {name for node in ast.walk(tree) if (name := _function(node))}


def _within(nodes: list[ast.expr]) -> set[str]:
    return {name for node in nodes for each in ast.walk(node) if (name := _name(each))}


def _function(node: ast.AST) -> str:
    """The name that a call calls, or ""."""
    return _name(node.func) if isinstance(node, ast.Call) else ""


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _is_found(module: str) -> bool:
    try:
        return module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
