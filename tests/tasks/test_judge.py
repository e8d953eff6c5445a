# ruff: noqa: E501  programs are one line each
"""Programs that are right pass, whatever they give back; programs that only seem so do not, whatever they touch."""

import pytest

from firstorder.backends.tasks.sandbox import Limits, passed
from firstorder.core.errors import DataError

LIMITS = Limits(seconds=20.0, memory_mib=512, isolation="full")
SHORT = Limits(seconds=0.5, memory_mib=512, isolation="full")
RIGHT = "def f(x):\n    return 2 * x"

ATTACKS = {
    "an object that is equal to all": "class E:\n    def __eq__(s, o): return True\n    __hash__ = None\ndef f(x): return E()",
    "that object in a list": "class E:\n    def __eq__(s, o): return True\ndef f(x): return [E()]",
    "an end in a comparison": "class E:\n    def __eq__(s, o): raise SystemExit(0)\ndef f(x): return E()",
    "an integer that is equal to all": "class I(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\n"
    "def f(x): return I(5)",
    "a text that is equal to all": "class S(str):\n    def __eq__(s, o): return True\n    __hash__ = str.__hash__\n"
    "def f(x): return S('')",
    "a list that is equal to all": "class L(list):\n    def __eq__(s, o): return True\ndef f(x): return L()",
    "an object that subtracts to 0": "class Z:\n    def __sub__(s, o): return 0\n    __rsub__ = __sub__\n"
    "    def __abs__(s): return 0\n    def __lt__(s, o): return True\n    def __contains__(s, o): return True\n"
    "def f(x): return Z()",
    "a class that is what it likes": "class M(type):\n    def __instancecheck__(s, o): return True\n"
    "class E(metaclass=M):\n    __class__ = int\n    def __eq__(s, o): return True\ndef f(x): return E()",
    "other built-ins": "import builtins\nfor n in ('len', 'isinstance', 'abs', 'sorted', 'AssertionError', 'compile', 'exec'):\n"
    "    setattr(builtins, n, lambda *a, **k: 0)\ndef f(x): return None",
    "its own names for those of the test": "expected = got = 4\nlen = abs = sorted = isinstance = lambda *a: 0\n"
    "def check(c): pass\nAssertionError = None\ndef f(x): return 0",
    "another math": "import math, sys\nmath.isclose = lambda *a, **k: True\nsys.modules['math'] = math\ndef f(x): return 0.0",
    "another json": 'import json\njson.dumps = lambda m, **k: \'["return", 4, "", null]\'\ndef f(x): return 0',
    "another compile": "import builtins\nc = builtins.compile\nbuiltins.compile = lambda s, *a, **k: c('pass', *a, **k)\n"
    "def f(x): return 0",
    "what the frames hold": "import sys, gc\ndef f(x):\n    frame, found = sys._getframe(), []\n"
    "    while frame: found += [*frame.f_locals.values(), *frame.f_globals.values()]; frame = frame.f_back\n"
    "    for each in [*found, *gc.get_objects()]:\n"
    "        text = each if isinstance(each, str) else each.decode('latin1') if isinstance(each, bytes) else ''\n"
    "        if '=' + '= 4' in text: return 4\n    return 0",
    "an end": "import os\ndef f(x): os._exit(0)",
    "an end with the status of a pass": "import os\ndef f(x): os._exit(17)",
    "a polite end": "import sys\ndef f(x): sys.exit(0)",
    "an end as a module": "import os\nos._exit(17)",
    "an end at exit": "import atexit, os\natexit.register(os._exit, 17)\ndef f(x): return 0",
    "a signal": "import os, signal\nsignal.signal(signal.SIGTERM, lambda *a: os._exit(17))\n"
    "def f(x): os.kill(os.getpid(), 15); return 0",
    "a signal to its parent": "import os\ndef f(x):\n    os.kill(os.getppid(), 9)\n    return 0",
    "a fork": "import os\ndef f(x):\n    os.fork()\n    return 0",
    "bytes in every descriptor": "import os\nfor d in range(64):\n    for m in (b'1' * 64, b'ready\\n111', b'\\0' * 7 + b'\\1' + b'1'):\n"
    "        try: os.write(d, m)\n        except OSError: pass\ndef f(x): return 0",
    "messages that it was not asked for": "import os, struct, json\nfor m in (['ready'], ['return', 5, '', None]):\n"
    "    d = json.dumps(m).encode()\n    os.write(3, struct.pack('>Q', len(d)) + d)\ndef f(x): return 0",
    "a message without an end": "import os\ndef f(x):\n    os.write(3, b'\\xff' * 8)\n    return 4",
    "a message that is deep": "import os, struct\ndef f(x):\n    d = b'[' * 100000\n"
    "    os.write(3, struct.pack('>Q', len(d)) + d)\n    return 4",
    "a function of the judge": "import os, struct, json\ndef f(x):\n    d = json.dumps(['return', ['builtin', 'exec'], '', None]).encode()\n"
    "    os.write(3, struct.pack('>Q', len(d)) + d)\n    return 4",
    "threads that go on": "import threading, os, time\ndef g():\n    while True:\n        for d in (1, 2): os.write(d, b'1')\n"
    "threading.Thread(target=g, daemon=True).start()\ndef f(x): return 0",
    "output without end": "def f(x):\n    while True: print('1' * 1000)",
    "an answer that depends on what it is asked next": "class T:\n    n = 0\n    def __bool__(s): T.n += 1; return True\n"
    "    def __eq__(s, o): return True\n    def __len__(s): return 1\n    def __index__(s): return 5\n"
    "def f(x): return T()",
    "memory of the array protocol": "class A:\n    __array_interface__ = {'data': (0, False), 'shape': (1,), 'typestr': '<i8',"
    " 'version': 3}\ndef f(x): return A()",
}
SLOW = {"a message without an end", "output without end", "bytes in every descriptor"}  # what ends by its limit
TESTS = [
    "assert f(2) == 4",
    "assert 4 == f(2)",
    "assert abs(f(2) - 4) < 1e-6",
    "import math\nassert math.isclose(f(2), 4)",
    "def check(candidate):\n    expected = 4\n    got = candidate(2)\n    assert got == expected\ncheck(f)",
    "assert 4 in [f(2)]",
    "assert [f(2)] == [4]",
    "assert isinstance(f(2), int) and str(f(2)) == '4'",
    "import unittest\nunittest.TestCase().assertEqual(f(2), 4)",
    "try:\n    wrong = f(2) != 4\nexcept Exception:\n    wrong = True\nassert not wrong",
]


def test_the_program_that_is_right_passes_what_the_attacks_are_tried_on():
    assert passed(RIGHT, TESTS, LIMITS) == [True] * len(TESTS)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_program_earns_nothing_without_the_answer(name):
    tests = TESTS[:2] if name in SLOW else TESTS
    assert passed(ATTACKS[name], tests, SHORT if name in SLOW else LIMITS) == [False] * len(tests)


def test_a_program_that_is_gone_is_no_exception_that_a_test_expects():
    tests = ["try:\n    f(-1)\nexcept BaseException:\n    pass\nelse:\n    raise AssertionError"]
    garbage = "import os\ndef f(x): os.write(3, b'\\xff' * 8)"
    assert passed("import os\ndef f(x): os._exit(0)", tests, LIMITS) == [False]
    assert passed(garbage, tests, SHORT) == [False]
    assert passed("def f(x): raise ValueError('x')", tests, LIMITS) == [True]


def test_what_a_test_compares_with_is_not_the_programs_to_change():
    program = "def f(xs):\n    xs.clear()\n    return xs"
    assert passed(program, ["xs = [2, 1]\nassert f(xs) == sorted(xs)"], LIMITS) == [False]


SEARCH = """
import re
def f():
    memory = open('/proc/self/mem', 'rb', buffering=0)
    for line in open('/proc/self/maps'):
        first, last = (int(part, 16) for part in line.split()[0].split('-'))
        try:
            memory.seek(first)
            if re.search(rb'QZ7[Q]Z', memory.read(last - first)):  # a pattern that does not hold what it finds
                return True
        except (OSError, OverflowError, ValueError):
            pass
    return False
"""


def test_expected_values_are_nowhere_in_the_programs_memory():
    weak = Limits(seconds=20.0, memory_mib=1024, isolation="limits")  # which lets it read its own memory
    tests = ["wanted = 'QZ7QZ'\nassert f() is True", "wanted = 'QZ7QZ'\nassert f() is False"]
    assert passed(SEARCH, tests, weak) == [False, True]
    assert passed(f"{SEARCH}\nheld = 'QZ7QZ'", tests, weak) == [True, False]  # it does find what is there


VALUES = {
    "Counter": ("from collections import Counter\nf = Counter", "assert f('aab') == {'a': 2, 'b': 1}"),
    "what a Counter adds": (
        "from collections import Counter\nf = Counter",
        "assert f('aab').most_common(1) == [('a', 2)]",
    ),
    "a named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        "assert f() == (1, 2) and f().y == 2",
    ),
    "an enumeration": (
        "import enum\nclass C(enum.IntEnum):\n    RED = 1\ndef f(): return C.RED",
        "assert f() == 1 and f().name == 'RED'",
    ),
    "a dataclass under postponed annotations": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
        "    y: int = 2\ndef f(): return P(1)",
        "assert f().x == 1 and f().y == 2",
    ),
    "an own class, pickled": (
        "import pickle\nclass P:\n    x = 1\ndef f(): return pickle.loads(pickle.dumps(P())).x",
        "assert f() == 1",
    ),
    "its own module": (
        "import sys\nvalue = 3\ndef f(): return sys.modules[__name__].value",
        "assert f() == 3",
    ),
    "a main guard": ("def f(): return 1\nif __name__ == '__main__':\n    raise SystemExit(1)", "assert f() == 1"),
    "built-in functions and types": (
        "f, g, h = abs, map, sorted",
        "assert f(-1) == 1 and list(g(f, [-2])) == [2] and h([2, 1], key=lambda n: n) == [1, 2]",
    ),
    "a generator": ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2] and 2 in f(3)"),
    "map and range": ("def f(n): return map(abs, range(-n, 0))", "assert list(f(2)) == [2, 1] and sum(f(2)) == 3"),
    "a closure": ("def f(n): return lambda x: x + n", "assert f(1)(2) == 3"),
    "a callback": ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x + 1, [1, 2]) == [2, 3]"),
    "a key": ("def f(xs, key=None): return sorted(xs, key=key)", "assert f(['bb', 'a'], key=len) == ['a', 'bb']"),
    "an iterator": ("def f(xs): return sum(xs)", "assert f(x * x for x in range(4)) == 14"),
    "in place": ("def f(xs): xs.sort()", "xs = [[2], [1]]\na = xs[0]\nf(xs)\nassert xs == [[1], [2]] and len(xs) == 2"),
    "in place, with a result": (
        "def f(xs): xs.pop(); return len(xs)",
        "xs = [1, 2]\nn = f(xs)\nassert (n, xs) == (1, [1])",
    ),
    "in place, in a nested dict": (
        "def f(d): d['a']['b'] = 1",
        "d = {'a': {}}\ninner = d['a']\nf(d)\nassert inner == {'b': 1}",
    ),
    "an exception's text": (
        "def f(): raise ValueError('too small')",
        "try:\n    f()\nexcept ValueError as error:\n    assert str(error) == 'too small'\nelse:\n    raise AssertionError",
    ),
    "an own exception": (
        "class Mine(KeyError): pass\ndef f(): raise Mine('x')",
        "import unittest\nwith unittest.TestCase().assertRaises(KeyError):\n    f()",
    ),
    "what is printed": (
        "def f(): print('hi')",
        "import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()) as said:\n    f()\nassert said.getvalue() == 'hi\\n'",
    ),
    "an object": (
        "class Stack:\n    def __init__(self): self.xs = []\n    def push(self, x): self.xs.append(x)\n"
        "    def __len__(self): return len(self.xs)\n    def __getitem__(self, i): return self.xs[i]\n"
        "    def __str__(self): return f'<{self.xs}>'",
        "s = Stack()\ns.push(3)\ns.push(4)\nassert len(s) == 2 and s[0] == 3 and str(s) == '<[3, 4]>' and list(s) == [3, 4]",
    ),
    "a context": (
        "class C:\n    def __enter__(self): self.on = True; return self\n    def __exit__(self, *e): self.on = False",
        "with C() as c:\n    assert c.on\nassert not c.on",
    ),
    "a coroutine": (
        "async def f(x): return 2 * x",
        "async def main():\n    assert await f(2) == 4\nimport asyncio\nasyncio.run(main())",
    ),
    "large and odd numbers": (
        "def f(x): return x",
        "import math\nfor x in (10**6000, -(2**63), 0.1, -0.0, float('inf'), 1 + 2j, True, None, b'\\xff', 'é\\ud800', {1: (2,)}, {3}):\n"
        "    assert f(x) == x and type(f(x)) is type(x)\nassert math.isnan(f(float('nan')))",
    ),
    "decimals, fractions and dates": (
        "from fractions import Fraction\ndef f(x): return x + x",
        "from decimal import Decimal\nfrom fractions import Fraction\nfrom datetime import timedelta\n"
        "for x in (Decimal('0.1'), Fraction(1, 3), timedelta(1)):\n    assert f(x) == 2 * x",
    ),
    "arrays": (
        "import numpy as np\ndef f(x): return np.cumsum(x)\ndef g(x): return np.max(x)",
        "import numpy as np\nassert np.array_equal(f(np.array([1, 2])), [1, 3]) and g([1, 2]) == 2 and f([1]).tolist() == [1]",
    ),
    "a built-in name": ("def sum(a, b): return a - b", "assert sum(3, 1) == 2"),
    "a state of the module": ("count = 0\ndef f():\n    global count\n    count += 1", "f()\nf()\nassert count == 2"),
    "a file": ("def f(p): return len(open(p).read())", "open('x.txt', 'w').write('abc')\nassert f('x.txt') == 3"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_right_program_passes_whatever_it_gives(name):
    program, test = VALUES[name]
    assert passed(program, [test], LIMITS) == [True]


def test_a_built_in_name_that_the_program_lacks_is_not_pythons():
    assert passed("", ["assert sum([1, 2]) == 3"], LIMITS) == [False]


def test_an_input_and_an_output_are_compared_as_text():
    program = "import sys\n\ndef main():\n    print(sum(map(int, sys.stdin.read().split())), 'ü')\n\nif __name__ == '__main__':\n    main()"
    tests = [
        {"input": "1 2\n3\n", "output": "6 ü"},
        {"input": "1 2\n3\n", "output": "6 ü\n\n"},
        {"input": "", "output": "1 ü"},
        {"input": "7 " * 200_000, "output": "1400000 ü"},
    ]
    assert passed(program, tests, LIMITS) == [True, True, False, True]
    late = "import atexit, sys\natexit.register(print, input())\nclass P: pass\nimport pickle; pickle.dumps(P())\nsys.exit()"
    assert passed(late, [{"input": "x", "output": "x"}], LIMITS) == [True]
    assert passed("while True: print('x' * 10**6)", [{"input": "", "output": "x"}], LIMITS) == [False]
    assert passed("import os\nos.write(1, b'1' * 9); os._exit(17)", [{"input": "", "output": "2"}], LIMITS) == [False]


def test_a_test_that_gives_what_does_not_cross_is_named():
    with pytest.raises(DataError, match=r"the test '.*' gives the program a value that is not plain data; rewrite it"):
        passed(
            "def f(x): return 1",
            ["assert f(2) == 1", "from types import SimpleNamespace as S\nassert f(S()) == 1"],
            LIMITS,
        )
