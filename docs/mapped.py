"""The map of `firstorder recommend`: its tables on the page, and all of it as a Parquet file beside the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tables
from firstorder.sim.trials import atlas as maps
from firstorder.sim.trials.atlas import GROUP, UPDATES, Point, choose
from firstorder.sim.trials.ruled import allowed

PARQUET = Path(__file__).parent / "map.parquet"
PUBLISHED = {1: "none", 2: "R2", 4: "R3", 8: "R3"}  # arXiv 2512.01374 sec. 5
LENGTHS = (8192, 32768)  # tokens; the paper's is the second
PAPER: Any = {"kl": 1.5e-3, "flips": 0.10, "group": 16, "entropy": 0.7, "step": 1e-4}
SHOWN = {"horizon": 8192, "right": 2, "step": 1e-4}  # the part of the map on the page
PROBE = "our probe of the small model, bfloat16"
ENGINES: Sequence[tuple[str, float, float, float, int]] = (  # KL live, KL under R3, flips, T
    ("Qwen3-30B-A3B, FP8 rollouts (arXiv 2510.11370)", 1.5e-3, 7.5e-4, 0.10, 32768),
    (PROBE, 7.7e-4, 4.3e-5, 0.0061, 24),
    (f"{PROBE} with an fp8 KV cache", 0.013, 0.0064, 0.0428, 24),
    (f"{PROBE} with an e5m2 KV cache", 0.034, 0.019, 0.0892, 24),
    (f"{PROBE} with emulated fp8 weights", 0.0027, 7.1e-4, 0.0199, 24),
)
"""Real pairs of engines: the published one, and those of docs/engines.md."""


def table() -> str:
    """What is chosen in each cell of a part of the map."""
    rows = [row for row in maps.read().rows() if all(row[name] == value for name, value in SHOWN.items())]
    return tables.rows(
        ("KL", "flips", "KL under R3", "N", "gradient error", "cosine, as sampled", "ESS", "advice"),
        (
            [
                f"{row['kl']:.2g}",
                f"{row['flips']:.2g}",
                f"{row['kl_replayed']:.2g}",
                str(row["updates"]),
                f"{row['gradient_error_natural']:.2g}",
                f"{row['score']:.3g}",
                f"{row['ess']:.3f}",
                row["advice"],
            ]
            for row in sorted(rows, key=lambda row: (row["updates"], row["kl"], row["flips"]))
        ),
    )


def anchors() -> str:
    """Real pairs of engines, and what the map says of them."""
    atlas = maps.read()

    def advice(kl: float, flips: float, horizon: int, n: int) -> str:
        point = Point(kl=kl, flips=flips, updates=n, horizon=horizon, group=GROUP, entropy=0.7, step=1e-4)
        return str(choose(allowed(atlas.numbers(point), point)).chosen.option.replay)

    return tables.rows(
        ("engines", "KL", "KL under R3", "flips", "T", *(f"N = {n}" for n in UPDATES)),
        (
            [name, f"{kl:.2g}", f"{replayed:.2g}", f"{flips:.2g}", f"{horizon:,}"]
            + [advice(kl, flips, horizon, n) for n in UPDATES]
            for name, kl, replayed, flips, horizon in ENGINES
        ),
    )


def paper() -> str:
    """Beside the paper, at its own engines: the replays with θ/μ, and with MiniRL's clip where it acts."""
    atlas = maps.read()

    def row(horizon: int, n: int, replay: str) -> list[str]:
        point = Point(updates=n, horizon=horizon, **PAPER)
        found = atlas.numbers(point)
        choice = choose(allowed(found, point))
        clip = "no clip" if n == 1 else "clip"
        cells = [found[f"{name}, theta/mu, {clip}"] for name in ("none", "R2", "R3")]
        own = str(choice.chosen.option.replay)
        ties = {str(each.option.replay) for each in choice.tied} - {own}
        said = own if not ties & {replay} or own == replay else f"{own}, tied with {replay}"
        return [f"{horizon:,}", str(n), replay, said, *(f"{each.error:.3g} ({each.score:.3g})" for each in cells)]

    heads = ("T", "N", "the paper", "here", "no replay", "R2", "R3")
    return tables.rows(heads, (row(t, n, replay) for t in LENGTHS for n, replay in PUBLISHED.items()))


def columns() -> dict[str, list[Any]]:
    """Every row of the map, a column each."""
    rows = maps.read().rows()
    return {name: [row[name] for row in rows] for name in rows[0]}


def write(file: Path = PARQUET) -> None:
    """All of the map."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns()), file)
