"""Which cells train together: as ensembles first, then over processes.

Cells that share the `[sim]` section and the schedule differ only in what an arm may differ in, so they are one batched
computation. It is split where it would not fit in memory, or where a larger batch no longer pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from firstorder.core import progress
from firstorder.core.method.recipe import Schedule
from firstorder.sim.config import Sim
from firstorder.sim.exact.memory import update_bytes
from firstorder.sim.exact.size import bytes_needed
from firstorder.sim.model.chunks import CHUNK_ROWS

from .ensemble import Cell, Ensemble
from .pool import Executor, run_all

# members x responses of an update; measured (docs/benchmarks.md): the gain of a larger batch ends at about a quarter of
# this, and at twice this a step takes twice as long as its parts
ROWS = 1 << 14
PROCESS = 400 << 20  # bytes of a process that has loaded torch and trains nothing yet


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Ensembles in the order of their first cells, and how many of them run at once."""

    ensembles: list[Ensemble]
    workers: int


def plan(cells: Sequence[Cell], out: Path, cores: int, memory: int) -> Plan:
    """Group cells into ensembles.

    Args:
        cells: those that are not finished, at least one.
        out: the sweep's folder.
        cores: that the workers share.
        memory: bytes that they share.
    """
    groups: dict[tuple[Sim, Schedule], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.sim, cell.recipe.schedule), []).append(cell)
    least = max(bytes_of(sim, schedule, 1) for sim, schedule in groups)
    workers = max(1, min(cores, len(cells), memory // least))
    budget = memory // workers
    ensembles = []
    for (sim, schedule), members in groups.items():
        size = _arms(sim, schedule, len(members), budget)
        parts = -(-len(members) // size)
        bounds = [place * len(members) // parts for place in range(parts + 1)]
        for start, end in pairwise(bounds):
            ensembles.append(Ensemble(cells=tuple(members[start:end]), out=out))
    return Plan(ensembles=ensembles, workers=min(workers, len(ensembles)))


def train(cells: Sequence[Cell], out: Path, executor: Executor) -> None:
    """Train cells that are not finished, telling of all their steps together. Raises as `run_all` does; the executor is
    closed in any case."""
    steps = sum(cell.recipe.schedule.steps for cell in cells)

    def tick(unfinished: Sequence[Ensemble]) -> None:
        left = sum(len(each.cells) for each in unfinished)
        ahead = sum(len(each.cells) * (each.steps - each.progress()[1]) for each in unfinished)
        note = f"{len(cells) - left} of {len(cells)} cells, {len(unfinished)} ensembles left"
        progress.tell("steps", steps - ahead, steps, note)

    made = plan(cells, out, executor.cores, executor.memory)
    tick(made.ensembles)
    try:
        executor.start(made.workers)
        run_all(made.ensembles, executor, lambda ensemble, nothing: None, tick)
    finally:
        executor.close()


def bytes_of(sim: Sim, schedule: Schedule, arms: int) -> int:
    """Estimated peak bytes of a process that trains an ensemble, fitted to measured peaks (docs/benchmarks.md).

    An update holds the graph of its batch; an exact evaluation goes arm by arm, when that graph is gone.
    """
    rows = min(arms * _rows(sim, schedule), CHUNK_ROWS)
    update = update_bytes(sim, rows, sim.prompt_length + sim.horizon - 1)
    return PROCESS + max(update, bytes_needed(sim, sim.members) if sim.evaluate_every else 0)


def _rows(sim: Sim, schedule: Schedule) -> int:
    """Responses that an arm's members have in an update."""
    return sim.members * schedule.prompts * schedule.group_size // schedule.minibatches


def _arms(sim: Sim, schedule: Schedule, most: int, budget: int) -> int:
    """How many arms an ensemble may have; one at least."""
    size = min(most, max(1, ROWS // _rows(sim, schedule)))
    while size > 1 and bytes_of(sim, schedule, size) > budget:
        size -= 1
    return size
