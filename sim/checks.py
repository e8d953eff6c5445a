"""What cannot be asked of `[sim]` with some recipe, or of an engine that is drawn at every token."""

from __future__ import annotations

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe

from .config import Sim


def check_replay(recipe: Recipe, sim: Sim) -> None:
    """Refuse replay where it can never act.

    Raises:
        ConfigError: every expert is always chosen.
    """
    if recipe.router_replay.mode != "disabled" and sim.top_k == sim.experts:
        raise ConfigError(
            f"router_replay.mode = {recipe.router_replay.mode} can never act with sim.top_k = sim.experts = "
            f"{sim.experts} (a dense model); lower sim.top_k or disable replay"
        )
    if recipe.router_replay.mode == "R3" and sim.numerics.drawn:
        raise ConfigError(
            "router_replay.mode = R3 replays routes that sim.numerics.fresh draws at every token, so that the target "
            "is no policy; use R2, disabled or sim.numerics.fresh = false"
        )
    if sim.random_readings and "kl_mu" in recipe.needs:
        raise ConfigError(
            f"rejection.kind = {recipe.rejection.kind} reads the whole distribution of mu, but sim.numerics.fresh "
            "and sim.reading_noise draw what is recorded of it at every token; use another rejection"
        )


def check_one_tail(sim: Sim) -> None:
    """Refuse to truncate an engine that is another at every token.

    Raises:
        ConfigError: naming what truncates.
    """
    if sim.truncates and sim.numerics.drawn:
        raise ConfigError(
            f"{truncation(sim)} leaves out the tail of one engine, but sim.numerics.fresh draws one at every token; "
            "unset one of them"
        )


def truncation(sim: Sim) -> str:
    """The settings by which μ leaves tokens out, as one writes them."""
    every = {"min_p": sim.min_p, "sample_top_k": sim.sample_top_k, "top_p": sim.top_p}
    acting = {name: x for name, x in every.items() if x != Sim.model_fields[name].get_default()}
    return ", ".join(f"sim.{name} = {x:g}" for name, x in acting.items())
