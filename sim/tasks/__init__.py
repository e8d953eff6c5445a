"""The simulator's tasks, by the name that `sim.task` takes."""

from firstorder.sim.config import Sim

from .chain import Chain
from .guess import Guess
from .program import Program
from .sums import Sum
from .task import SimTask, WordTask
from .text import Text

WORD_TASKS: dict[str, type[WordTask]] = {"sum": Sum, "program": Program, "text": Text, "guess": Guess}
TASKS: dict[str, type[SimTask]] = {**WORD_TASKS, "chain": Chain}


def task_of(sim: Sim) -> SimTask:
    """The task that `sim.task` names."""
    return TASKS[sim.task](sim)


__all__ = ["TASKS", "WORD_TASKS", "Chain", "Guess", "Program", "SimTask", "Sum", "Text", "WordTask", "task_of"]
