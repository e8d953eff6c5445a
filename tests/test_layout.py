"""The house: links, package map, and which room may import which."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rooms
from firstorder import __version__

ROOT = Path(__file__).parents[1]
ROOMS = ("core", "sim", "backends", "cli")
ALLOWED = {
    "core": {"core"},
    "sim": {"core", "sim"},
    "backends": {"core", "backends"},
    "cli": set(ROOMS),
}
HEAVY = {"torch", "numpy", "scipy", "pydantic"}


def files(room):
    return sorted((ROOT / room).rglob("*.py"))


def imports(file):
    for node in ast.walk(rooms.parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


@pytest.mark.parametrize("room", ROOMS)
def test_the_package_links_to_the_folder_at_the_root(room):
    link = ROOT / "src" / "firstorder" / room
    assert link.is_symlink()
    assert link.resolve() == ROOT / room


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_the_rooms_below_it(room):
    for file in files(room):
        for name in imports(file):
            if name.startswith("firstorder."):
                assert name.split(".")[1] in ALLOWED[room], f"{file} imports {name}"
            assert name.split(".")[0] not in ROOMS, f"{file} imports {name} by its bare name"


def test_wheel_and_sdist_hold_every_file_of_the_package_itself():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    here = {f"src/firstorder/{path.name}" for path in (ROOT / "src/firstorder").iterdir() if path.is_file()}
    assert set(build["only-include"]) == here | set(ROOMS)
    assert set(build["targets"]["sdist"]["only-include"]) > here | set(ROOMS)  # the wheel is built of it


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "firstorder", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


def test_core_stands_on_torch_and_pydantic_alone():
    known = set(sys.stdlib_module_names) | {"torch", "pydantic", "firstorder", "__future__"}
    for file in files("core"):
        assert {name.split(".")[0] for name in imports(file)} <= known, file


def test_help_imports_nothing_heavy():
    script = "import sys; from firstorder.cli.main import run; run(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert not loaded & HEAVY


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_has_outgrown_one_idea(room):
    for file in files(room):
        assert len(file.read_text().splitlines()) <= 400, file


@pytest.mark.parametrize("folder", ROOMS)
def test_the_rooms_of_a_folder_stand_on_each_other_in_one_direction(folder):
    assert rooms.floors(rooms.graph(folder))


def test_a_room_that_imports_in_a_circle_is_found():
    with pytest.raises(graphlib.CycleError):
        rooms.floors({"core.a": {"core.b"}, "core.b": {"core.a"}})
