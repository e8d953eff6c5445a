"""The rooms of the package and who imports whom, read from the source: a table of them, and their picture.

A room is a folder of modules, or a module that stands alone. Its floor is one above the highest room that it imports.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/images/rooms.svg"
FOLDERS = ("core", "sim", "backends", "cli")
Graph = dict[str, set[str]]

ROW, HIGH, EDGE, GAP = 54, 30, 14, 34  # pixels: between floors, of a box, around a folder, between folders
WIDE, SIM = 1000, 300  # pixels: of the picture, of the plate of sim
COLOURS = {"core": "#cfe3f7", "sim": "#d8eed0", "backends": "#f9e2c0", "cli": "#e6daf3"}
GREY = "#808080"  # is read on white and on black


@cache
def parsed(file: Path) -> ast.Module:
    """The source of a file."""
    return ast.parse(file.read_text())


def imported(file: Path) -> Iterator[str]:
    """The modules of the package that a file imports, wherever in it, as dotted names without the package's own."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *filter(None, [node.module]))).removeprefix("firstorder.")
            yield from (f"{name}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """The room that a module, or a name in it, belongs to."""
    return ".".join(module.split(".")[:2])


@cache
def graph(folder: str) -> Graph:
    """Which room of a folder imports which others of it."""
    found: Graph = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        here = room(".".join(file.relative_to(ROOT).with_suffix("").parts))
        rooms = {room(name) for name in imported(file) if name.startswith(f"{folder}.")}
        if not here.endswith("__init__"):
            found.setdefault(here, set()).update(rooms - {here})
    return {here: {there for there in rooms if there in found} for here, rooms in found.items()}


def floors(rooms: Graph) -> dict[str, int]:
    """The floor of every room; an import in a circle raises."""
    level: dict[str, int] = {}
    for here in graphlib.TopologicalSorter(rooms).static_order():
        level[here] = max((level[there] + 1 for there in rooms[here]), default=0)
    return dict(sorted(level.items()))


def direct(rooms: Graph) -> list[tuple[str, str]]:
    """The imports that no way through another room stands for."""

    @cache
    def below(here: str) -> set[str]:
        return rooms[here].union(*(below(there) for there in rooms[here]))

    return [
        (here, there)
        for here, imports in rooms.items()
        for there in sorted(imports)
        if not any(there in below(other) for other in imports)
    ]


def table(folder: str) -> str:
    """The rooms of a folder from the top floor down, with the first line of each and the rooms it stands on."""
    rooms = graph(folder)
    level, arrows = floors(rooms), direct(rooms)
    lines = ["| room | what is there | stands on |", "|---|---|---|"]
    for here in sorted(rooms, key=lambda each: (-level[each], each)):
        place = ROOT / here.replace(".", "/")
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        first = (ast.get_docstring(parsed(file)) or "").split("\n\n")[0].replace("\n", " ")
        below = ", ".join(f"`{name.split('.')[1]}`" for above, name in arrows if above == here)
        lines.append(f"| `{place.relative_to(ROOT)}{'/' if place.is_dir() else '.py'}` | {first} | {below} |")
    return "\n".join(lines)


def picture() -> str:
    """The house as SVG: a plate for each folder, its rooms on their floors, an arrow from each to what it imports."""
    tall = {folder: 2 * EDGE + (max(floors(graph(folder)).values()) + 1) * ROW for folder in FOLDERS}
    tall["sim"] = tall["backends"] = max(tall["sim"], tall["backends"])
    second = tall["cli"] + GAP
    third = second + tall["sim"] + GAP
    plates = {"cli": (0, 0, WIDE), "sim": (0, second, SIM), "core": (0, third, WIDE)}
    plates["backends"] = (SIM + GAP, second, WIDE - SIM - GAP)
    parts = [part for folder in FOLDERS for part in _plate(folder, *plates[folder], tall[folder])]
    for middle in (SIM / 2, (WIDE + SIM + GAP) / 2):
        parts += [
            f'<path d="M{middle:.0f} {end - GAP + 3}V{end - 4}" stroke-width="4" marker-end="url(#thick)"/>'
            for end in (second, third)
        ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-4 -4 {WIDE + 8} {third + tall["core"] + 8}" '
        f'font-family="sans-serif" font-size="14" fill="none" stroke="{GREY}">'
        "<title>The rooms of the package: arrows go from a room to what it imports</title>"
        f"<defs>{_arrow('thin', 7, 8)}{_arrow('thick', 5, 3)}</defs>"
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _arrow(name: str, tip: int, size: int) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="{tip}" refY="4" markerWidth="{size}" markerHeight="{size}" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}" stroke="none"/></marker>'
    )


def _plate(folder: str, left: float, top: float, wide: float, tall: float) -> Iterator[str]:
    rooms = graph(folder)
    yield f'<rect x="{left}" y="{top}" width="{wide}" height="{tall}" rx="10"/>'
    yield f'<text x="{left + 12}" y="{top + 24}" font-size="18" font-weight="bold" {_ink(GREY)}>{folder}/</text>'
    places = _places(rooms, left, top + tall - EDGE, wide)
    for above, below in direct(rooms):
        (x, y, *_), (u, v, *_) = places[above], places[below]
        half = (y + v) / 2
        curve = f"M{x:.0f} {y + HIGH / 2:.0f}C{x:.0f} {half:.0f} {u:.0f} {half:.0f} {u:.0f} {v - HIGH / 2 - 2:.0f}"
        yield f'<path d="{curve}" marker-end="url(#thin)"/>'
    for name, (x, y, width) in places.items():
        fill = COLOURS[folder] if (ROOT / name.replace(".", "/")).is_dir() else "#f4f4f4"
        box = f'x="{x - width / 2:.0f}" y="{y - HIGH / 2:.0f}" width="{width:.0f}" height="{HIGH}"'
        yield f'<rect {box} rx="5" fill="{fill}"/>'
        title = escape(name.split(".")[1])
        yield f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" {_ink("#202020")}>{title}</text>'


def _ink(colour: str) -> str:
    return f'fill="{colour}" stroke="none"'


def _places(rooms: Graph, left: float, bottom: float, wide: float) -> dict[str, tuple[float, float, float]]:
    """Middle and width of every box: floors from the ground up, on each a room near those that it imports."""
    level = floors(rooms)
    places: dict[str, tuple[float, float, float]] = {}
    for floor in range(max(level.values()) + 1):
        here = [name for name, at in level.items() if at == floor]
        here.sort(key=lambda name: _mean([places[each][0] for each in rooms[name] if each in places]))
        widths = [9.2 * len(name.split(".")[1]) + 14 for name in here]
        space = (wide - sum(widths)) / (len(here) + 1)
        x = left
        for name, width in zip(here, widths, strict=True):
            x += space + width / 2
            places[name] = (x, bottom - (floor + 0.5) * ROW, width)
            x += width / 2
    return places


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
