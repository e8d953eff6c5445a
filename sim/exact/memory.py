"""What a measurement or a run will hold beside the tree of responses, estimated before anything is allocated.

Rates are fitted to measured peaks of single processes; they tell what cannot fit from what does.
"""

from __future__ import annotations

from firstorder.core.errors import SizeError
from firstorder.core.method.recipe import Schedule
from firstorder.sim.config import Sim
from firstorder.sim.model.chunks import CHUNK_ROWS
from firstorder.sim.tasks import task_of

from .size import count
from .world import CHUNK_TOKENS

COPIES = 24  # float64 numbers a parameter at the peak: weights, two engines, gradients, moments; 23.7 measured
LOOKED_UP = 200  # bytes of a token of a table at the peak of a step: log-probs, places, masks, the sums of diagnostics
TABLES = 4  # int64 numbers that are alive for each of those that a task's rules go through


def check_memory(sim: Sim, members: int, available: int, schedule: Schedule | None = None) -> None:
    """Refuse weights, demonstrations, rewards or a step's responses that cannot fit.

    Args:
        sim: the sizes.
        members: ensemble members held at once.
        available: bytes of free memory.
        schedule: of a training; a measurement samples nothing.

    Raises:
        SizeError: what was estimated, its bytes, and which settings to lower.
    """
    estimates = {
        f"the weights of {members:,} x {parameters(sim):,} parameters": (
            8 * COPIES * parameters(sim) * members,
            "sim.width, sim.expert_width, sim.experts, sim.layers or sim.vocab" + (", or sim.members" * (members > 1)),
        ),
        f"the demonstrations of sim.task = {sim.task} for {sim.training_prompts:,} prompts": (
            demonstration_bytes(sim),
            "sim.vocab, sim.pool or sim.horizon",
        ),
        f"the rewards of sim.task = {sim.task}": (reward_bytes(sim, schedule), "sim.vocab or sim.prompts"),
    }
    if schedule is not None:
        responses = members * schedule.prompts * schedule.group_size
        estimates[f"a step of {responses:,} responses"] = (
            batch_bytes(sim, schedule, members),
            "schedule.prompts, schedule.group_size, sim.horizon or sim.members",
        )
    for what, (needed, remedy) in estimates.items():
        if needed > available:
            raise SizeError(
                f"{what} would take about {needed / 2**30:,.1f} GiB, but {available / 2**30:.1f} GiB are free; "
                f"lower {remedy}"
            )


def parameters(sim: Sim) -> int:
    """Weights of one policy; see `policy.initial_weights`."""
    d, e = sim.width, sim.experts
    return 2 * sim.vocab * d + sim.layers * (2 * d * d + d * e + 2 * e * d * sim.expert_width)


def demonstration_bytes(sim: Sim) -> int:
    """The automaton of a cold start with its shares of accepted words; 0 without one."""
    if sim.coldstart == "none":
        return 0
    states = {"sum": sim.vocab, "program": sim.vocab**2, "text": sim.prompt_length + 1}
    rows = sim.training_prompts * states.get(sim.task, 2 * sim.turn_length + 2)
    return 8 * rows * (TABLES * (sim.vocab - 1) + sim.horizon)


def reward_bytes(sim: Sim, schedule: Schedule | None) -> int:
    """What `program` holds to run every response on every input; the other tasks hold no more than the responses."""
    if sim.task != "program":
        return 0
    at_once = CHUNK_TOKENS // sim.horizon
    sampled = 0 if schedule is None else sim.members * schedule.prompts * schedule.group_size
    enumerated = min(at_once, count(sim) * sim.vocab) if schedule is None or sim.evaluate_every else 0
    return 8 * TABLES * sim.vocab * max(sampled, enumerated)


def batch_bytes(sim: Sim, schedule: Schedule, members: int) -> int:
    """The responses of a step with what is recorded at every token, and the graph of an update."""
    length = task_of(sim).layout.length
    tokens = members * schedule.prompts * schedule.group_size * length
    if not sim.carries:  # one pass over the contexts of the training prompts serves all tokens
        rows = members * sim.training_prompts * sim.places
        recorded = LOOKED_UP + 12 * sim.layers * (sim.top_k + 2)
        return tokens * recorded + update_bytes(sim, min(rows, CHUNK_ROWS), 1) + 8 * 4 * sim.vocab * rows
    recorded = 100 + sim.layers * (6 * sim.top_k + 16 + 16 * sim.width)
    rows = min(members * schedule.prompts * schedule.group_size // schedule.minibatches, CHUNK_ROWS)
    return tokens * recorded + update_bytes(sim, rows, length - 1) + 16 * sim.vocab * rows * length


def update_bytes(sim: Sim, rows: int, tokens: int) -> int:
    """The graph of an update of so many responses, each of so many tokens that are run.

    An engine that rounds runs all experts on every token; the others those that it chose, in blocks with fillings.
    """
    every = 5 * sim.experts * sim.expert_width + 7 * sim.width
    chosen = sim.top_k * (9 * sim.expert_width + 4 * sim.width) + 7 * sim.width
    return 8 * rows * tokens * sim.layers * (min(every, chosen) if sim.training_numerics.plain else every)
