"""What the keys of `[sim]` cannot be together, each with what was got and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sim import Sim

MAX_PROMPTS = 1_000_000
MAX_SEED = 2**63 - 1


def check_sizes(sim: Sim) -> None:
    """Refuse sizes, prompts and engines that cannot be together.

    Raises:
        ValueError: naming the keys and the remedy.
    """
    if sim.seed + sim.members - 1 > MAX_SEED:
        raise ValueError(
            f"sim.seed = {sim.seed} and sim.members = {sim.members} do not fit into 63 bits; lower sim.seed"
        )
    available = sim.available
    if available > MAX_PROMPTS and sim.carries:
        raise ValueError(
            f"sim.prompt_length = {sim.prompt_length} over {sim.vocab - 1} tokens makes more than "
            f"{MAX_PROMPTS:,} prompts to choose from; lower sim.prompt_length or sim.vocab"
        )
    if sim.prompts > available:
        raise ValueError(
            f"sim.prompts = {sim.prompts} but only {available} prompts of sim.prompt_length = "
            f"{sim.prompt_length} exist over {sim.vocab - 1} tokens; raise sim.prompt_length"
        )
    if sim.pool is not None and not sim.prompts <= sim.pool <= available:
        raise ValueError(
            f"sim.pool = {sim.pool} must hold the sim.prompts = {sim.prompts} measured ones"
            + (
                "; raise sim.pool"
                if sim.task == "chain"
                else f" and at most the {available} prompts of "
                f"sim.prompt_length = {sim.prompt_length} over {sim.vocab - 1} tokens; "
                + ("raise sim.prompt_length or sim.vocab" if sim.pool > available else "raise sim.pool")
            )
        )
    if sim.task == "guess" and sim.vocab < 4:
        raise ValueError(f"sim.task = guess answers with tokens 1 to 3, got sim.vocab = {sim.vocab}; raise it to 4")
    answered = sim.task == "guess" or (sim.task == "chain" and sim.feedback)
    if answered and sim.turn_length > sim.horizon:
        raise ValueError(
            f"sim.turn_length = {sim.turn_length} is more than sim.horizon = {sim.horizon}, so no turn "
            "would end; lower sim.turn_length"
        )
    if sim.staleness and sim.prompts == available:
        raise ValueError(
            f"sim.staleness moves theta on prompts other than those measured, but sim.prompts = {sim.prompts} "
            "measures all; lower sim.prompts or raise sim.prompt_length"
        )
    if sim.direction == "recipe" and sim.numerics.kind == "batch":
        raise ValueError("sim.direction = recipe needs one update, but numerics.kind = batch draws many; use natural")
    for name in ("numerics", "training_numerics"):
        if getattr(sim, name).kind == "gate_order" and sim.router not in ("softmax_topk", "topk_softmax"):
            raise ValueError(
                f"sim.{name}.kind = gate_order reorders a softmax and a top-k, but sim.router = {sim.router} has "
                "one order only; use softmax_topk or topk_softmax"
            )
    if sim.missing_prefix and (not sim.carries or sim.missing_prefix >= sim.prompt_length):
        raise ValueError(
            f"sim.missing_prefix = {sim.missing_prefix} must leave the last of sim.prompt_length = "
            f"{sim.prompt_length} tokens, which no cache holds; lower it"
            if sim.carries
            else f"sim.missing_prefix = {sim.missing_prefix} changes nothing after the prefix, since contexts of "
            f"sim.task = {sim.task} carry no state; use sim.missing"
        )
    batch = sim.numerics.kind == "batch"
    if sim.reading_noise and (sim.numerics.drawn or batch):
        raise ValueError(
            f"sim.reading_noise = {sim.reading_noise:g} and numerics.{'kind = batch' if batch else 'fresh'} both "
            "draw one of sim.draws; set one of them"
        )
    if sim.training_numerics.drawn:
        raise ValueError(
            "sim.training_numerics.fresh is not defined: the target must be a function of the prefix; unset it"
        )
    if sim.training_numerics.kind == "batch":
        raise ValueError(
            "sim.training_numerics.kind = batch is not defined: the target must be a function of the prefix"
        )


def check_chain(sim: Sim) -> None:
    """Refuse a chain that cannot be learnt, and what needs one elsewhere.

    Raises:
        ValueError: naming the keys and the remedy.
    """
    if sim.task != "chain":
        if sim.coldstart == "calibrated":
            raise ValueError(
                f"sim.coldstart = calibrated teaches the contexts of sim.task = chain, got {sim.task}; use terse, "
                "verbose or roundabout"
            )
        return
    if sim.coldstart not in ("none", "calibrated"):
        raise ValueError(
            f"sim.coldstart = {sim.coldstart} draws demonstrations that end, of which sim.task = chain has none; "
            "use calibrated"
        )
    if sim.special >= sim.vocab - sim.first:
        raise ValueError(
            f"sim.right = {sim.right}, sim.thinking = {sim.thinking} and sim.recovery = {sim.recovery} need "
            f"{sim.special} tokens and one that is wrong, but sim.vocab = {sim.vocab} has "
            f"{sim.vocab - sim.first} to say; raise it to {sim.special + 1 + sim.first}"
        )
    if sim.feedback and sim.vocab < 3:
        raise ValueError(f"sim.feedback says token 1 or 2, got sim.vocab = {sim.vocab}; raise it to 3")
    if sim.ending == "horizon":
        _check_every_response_is_cut(sim)
    elif sim.horizon < sim.positions and not sim.graded:
        raise ValueError(
            f"sim.horizon = {sim.horizon} cuts every response before it answers at the last of sim.positions = "
            f"{sim.positions}, so nothing is earned; raise sim.horizon"
        )


def _check_every_response_is_cut(sim: Sim) -> None:
    """Refuse what makes no sense where nothing but the horizon ends a response."""
    cases = {
        "sim.reward = graded": (sim.graded, "pays for answers"),
        "sim.truncated = zero": (sim.truncated == "zero", "pays nothing for a response that is cut"),
        f"sim.thinking = {sim.thinking}": (sim.thinking > 0, "would earn everything by thinking for ever"),
    }
    for name, (given, why) in cases.items():
        if given:
            raise ValueError(f"{name} {why}, but sim.ending = horizon cuts every response; use sim.ending = answer")
