"""The simulator's tasks, by the name that `sim.task` takes."""

from firstorder.sim.config import Sim

from .chain import Chain
from .guess import Guess
from .program import Program
from .sums import Sum
from .task import SimTask
from .text import Text

TASKS: dict[str, type[SimTask]] = {"sum": Sum, "program": Program, "text": Text, "guess": Guess, "chain": Chain}


def task_of(sim: Sim) -> SimTask:
    """The task that `sim.task` names."""
    return TASKS[sim.task](sim)


__all__ = ["TASKS", "Chain", "Guess", "Program", "SimTask", "Sum", "Text", "task_of"]
