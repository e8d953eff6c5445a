"""Command lines by the thousand: the commands and options of the app itself, with values that are right, at an edge, or
hostile. A new command, a new option and a new setting are among them without a word here."""

import contextlib
import io
import math
import os
import re
import shutil
import types
import typing
from pathlib import Path

import typer
from hypothesis import strategies as st
from pydantic import BaseModel

from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.cli.main import app, run
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import assign, build, shipped
from firstorder.sim.config import Sim

TABLE = typer.main.get_command(app)
COMMANDS = {name: command.params for name, command in TABLE.commands.items()}
SECTIONS = {"": Recipe, "sim": Sim, "torchtitan": Torchtitan, "vllm": Vllm, "task": TaskSettings}

NAMES = ("a.toml", "run", "model", "new", "new/deep", "damaged.toml", "damaged.json", "nested.json", "nested.toml")
HOSTILE = (
    *(
        "",
        " ",
        ".",
        "..",
        "../..",
        "/",
        "~",
        "-",
        "--",
        "-x",
        "a\nb",
        "a\tb",
        "a\x1bb",
        "a\x00b",
        "é",
        "名前",
        "\udc80",
        "\ud800",
    ),
    *(
        "x" * 300,
        "x" * 5000,
        "/".join(["x" * 200] * 30),
        "/dev/null",
        "/dev/full",
        "/proc/x",
        "/proc/self/mem",
    ),
    *(
        "[" * 5000,
        "{a=" * 2000,
        "9" * 5000,
        "9" * 20,
        "-1",
        "0",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "true",
        "'4'",
        '"4"',
        "4.5",
    ),
    *(
        "1979-05-27",
        "07:32:00",
        "[]",
        "[1]",
        "[[1]]",
        "{}",
        "{a=1}",
        "a=b",
        "=",
        "a.b.c",
        "a..b",
        ".=",
        "%s%n",
        "$(id)",
        "\\u0000",
    ),
    *(
        '"\\u0000"',
        '"a\\nb"',
        '"../../x"',
        "0x7fffffffffffffff",
        "0b1",
        "1_000",
        "+1",
        "1e-300",
        "1e300",
        "http://[",
        "[red]",
    ),
)
WORDS = (
    "sim",
    "torchtitan",
    "local",
    "ray",
    "wandb",
    "tensorboard",
    "h100",
    "direct",
    "steps",
    "table-1",
    "value-identity",
    "export",
    "check",
    "peers",
)
NUMBERS = ("1", "2", "8", "64", "1000000", "9223372036854775807", "9223372036854775808", "18446744073709551616")


class Worked(BaseException):
    """A command has come to its work; the fuzz goes no further."""


def work(*_, **__):
    raise Worked


def leaves(model, prefix=""):
    """(dotted key, field) of every setting of a model."""
    for name, field in model.model_fields.items():
        kind, key = field.annotation, f"{prefix}.{name}" if prefix else name
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, key)
        else:
            yield key, field


SETTINGS = {key: field for prefix, model in SECTIONS.items() for key, field in leaves(model, prefix)}


def ends(field):
    """The ends of a field's range and what lies beyond them, as text."""
    interval = (field.json_schema_extra or {}).get("interval")
    if interval is None:
        return []
    low, high = (float(end) for end in interval[1:-1].split(","))
    whole = int in {field.annotation, *typing.get_args(field.annotation)}
    beyond = [low, high, low - 1, high + 1, math.nextafter(low, math.inf), math.nextafter(high, -math.inf)]
    return [str(int(x)) if whole and math.isfinite(x) else repr(x) for x in beyond]


def kinds(annotation):
    """An annotation and what its union is made of."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [each for part in typing.get_args(annotation) for each in kinds(part)]
    return [annotation]


def items(annotation):
    """What a tuple is made of, or None where it is none."""
    if typing.get_origin(annotation) is not tuple:
        return None
    first = typing.get_args(annotation)[0]
    return getattr(first, "__origin__", first)


def built(key, value):
    """The section that `key` is of, with that value and otherwise its defaults."""
    prefix = key.partition(".")[0] if key.partition(".")[0] in SECTIONS else ""
    path = key.split(".")[bool(prefix) :]
    return build(SECTIONS[prefix], assign({}, [(".".join(path), value)]), prefix)


def right(field):
    """Values that a field takes, as text: those of its choices, or its default."""
    choices = [
        str(x)
        for kind in kinds(field.annotation)
        if typing.get_origin(kind) is typing.Literal
        for x in typing.get_args(kind)
    ]
    default = field.get_default(call_default_factory=True)
    known = default is not None and default != "" and default != ()
    plain = (
        str(default).lower()
        if isinstance(default, bool)
        else str(list(default) if isinstance(default, tuple) else default)
    )
    return [*choices, *([plain] if known else []), *(["true", "false"] if bool in kinds(field.annotation) else [])]


VALUES = {key: [*right(field), *ends(field)] for key, field in SETTINGS.items()}
paths = st.sampled_from((*NAMES, *HOSTILE))
hostile = st.sampled_from(HOSTILE)
words = st.sampled_from((*WORDS, *shipped(), *NUMBERS))


@st.composite
def settings(draw, many=False):
    """`a.b=v`, or `a.b=v1,v2`: mostly of a key that there is, mostly with a value that it takes."""
    key = draw(st.sampled_from([*SETTINGS, *SETTINGS, "recipe", "clip", "sim.nothing", "no.such", "", "."]))
    known = VALUES.get(key) or ["1"]
    value = st.sampled_from(known) | st.sampled_from(known) | hostile
    found = draw(st.lists(value, min_size=1, max_size=3)) if many else [draw(value)]
    return f"{key}={','.join(found)}"


def values(parameter):
    """What may stand for a parameter; by its metavar where it has one."""
    shown = parameter.metavar or ""
    if "=" in shown:
        return settings(many="," in shown) | settings(many="," in shown) | hostile
    if any(word in shown for word in ("DIR", "FILE", "RUN", "MODEL")):
        return paths | words
    return words | words | paths | st.text(max_size=8)


@st.composite
def lines(draw):
    """A command line."""
    name = draw(st.sampled_from(list(COMMANDS)))
    line = [name]
    for parameter in COMMANDS[name]:
        several = parameter.multiple or parameter.nargs == -1
        least = int(parameter.required and draw(st.integers(0, 19)) > 0)
        for _ in range(draw(st.integers(least, 3 if several else max(least, 1)))):
            option = parameter.opts[:1] if parameter.param_type_name == "option" else []
            line += option if getattr(parameter, "is_flag", False) else [*option, draw(values(parameter))]
    return line


def outcome(line):
    """Exit code, standard output and standard error of a command line; code None where it has come to its work."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run(line)
        except Worked:
            code = None
    return code, out.getvalue(), err.getvalue()


def check(line):
    """Run a command line; it is done, at its work, or refused in one line. What else it raises is a fault of ours."""
    code, out, err = outcome(line)
    said = [each for each in err.splitlines() if each.startswith("firstorder: ")]
    assert code in (None, 0, 1, 2), (line, code, err)
    if code == 2:
        assert len(said) == 1, (line, err)
        assert err.endswith(f"{said[0]}\n"), (line, err)
        assert len(said[0]) < 1400, (line, err)
        assert said[0].isprintable(), (line, err)
    return code, out


def clean(folder, kept):
    """Remove what a command line has left in a folder."""
    for entry in os.scandir(folder):
        if entry.name not in kept:
            shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)


def furnish(folder: Path):
    """Files for `NAMES` in a folder, but for those that are new."""
    (folder / "a.toml").write_text("[clip]\nkind = 'none'\n")
    (folder / "damaged.toml").write_bytes(b"[clip\n\xff")
    (folder / "damaged.json").write_text('{"schema": "firstorder.validate/1", "recipe": ')
    (folder / "nested.json").write_text("[" * 5000)
    (folder / "nested.toml").write_text("a = " + "[" * 5000)
    for name in ("run", "model"):
        (folder / name).mkdir()
    (folder / "run" / "config.toml").write_text("[about]\nname = 'x'\n")
    (folder / "run" / "metrics.jsonl").write_text('{"step": 0, "kl": null, "reward": 0.5}\n')
    (folder / "model" / "config.json").write_text('{"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": -1}')
    return {entry.name for entry in os.scandir(folder)}


NO_NUMBER = re.compile(r"(?<![a-z])(nan|inf)(?![a-z])")
RUN = tuple(name for name in shipped() if not name.startswith("qwen"))
SIZES = {
    *(
        "sim.experts",
        "sim.top_k",
        "sim.layers",
        "sim.pool",
        "sim.members",
        "sim.staleness",
        "sim.groups",
        "sim.limited_groups",
    ),
    *("sim.prompt_length", "sim.turn_length"),
}


def computed(fixed):
    """`a.b=v` of the settings of method, optimiser and simulator, sizes and fixed ones aside."""
    kept = [key for key in VALUES if key.partition(".")[0] in {*Recipe.model_fields, "sim"} - {"about"}]
    return [f"{key}={value}" for key in kept if key not in SIZES | fixed for value in VALUES[key]]
