"""What a promotion stands on: the recipe, how far the engines will be apart, and the trial that it passed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compose import split
from .recipes import resolve

if TYPE_CHECKING:
    from firstorder.core.method.recipe import Recipe
    from firstorder.sim.trials.evidence import Target

    from .overrides import Source


def read_source(source: Source) -> tuple[bytes, Recipe, dict[str, Any]]:
    """What is promoted as TOML, resolved; the recipe in it; and its `[task]` section, which may be empty.

    Args:
        source: a run folder, a shipped recipe, a TOML file, or a recipe.

    Raises:
        ConfigError: there is none.
    """
    from firstorder.core.method.recipe import Recipe
    from firstorder.core.settings.toml import dump

    if not isinstance(source, Recipe) and Path(source).is_dir():
        source = Path(source) / "config.toml"
    resolved = resolve(source)
    recipe, sections = split(resolved)
    return dump(resolved).encode(), recipe, sections["task"]


def wanted(recipe: Recipe, match: str | None) -> Target:
    """The discrepancy that the simulated engines get: published, or that of a run of the same method.

    Raises:
        ConfigError: it is no run, one of another recipe, or one whose engines agree.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.core.method.recipe import fingerprint
    from firstorder.core.runs.logs import whole
    from firstorder.sim.trials.evidence import PUBLISHED, check_evidence

    if match is None:
        return PUBLISHED
    if not Path(match, "metrics.jsonl").is_file():
        raise ConfigError(f"--match {match} holds no metrics.jsonl; give the folder of a run")
    _, ran, _ = read_source(match)
    check_evidence(recipe, fingerprint(ran), f"--match {match}")
    lines = whole(Path(match, "metrics.jsonl"), 0, "resume that run, or give another")
    if not all(isinstance(line.get(key), float) for line in lines for key in ("kl", "route/flip_rate")):
        raise ConfigError(f"--match {match} logs no kl or route/flip_rate; give another run")
    kl, flips = (_mean([line[key] for line in lines]) for key in ("kl", "route/flip_rate"))
    if not lines or kl <= 0 or flips <= 0:
        raise ConfigError(
            f"--match {match} has a mean kl of {kl:.3g} and a flip rate of {flips:.3g}, and both must be above 0; "
            "give a run whose engines differ, or leave it out"
        )
    replayed = "R3" if ran.router_replay.mode == "R3" else "disabled"
    return replace(PUBLISHED, kl=kl, flip_rate=flips, mode=replayed, source=f"{len(lines)} steps of {match}")


def read_evidence(recipe: Recipe, file: str) -> dict[str, Any]:
    """The gate of an earlier bundle.

    Raises:
        ConfigError: it cannot be read, or is of another recipe.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.sim.trials.evidence import check_evidence

    try:
        if Path(file).exists() and not Path(file).is_file():  # a device is read without end, until the memory is full
            raise OSError("not a file")
        evidence: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        own = str(evidence["recipe"])
        collapsed(evidence), bool(evidence["stable"]), said(evidence)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"--evidence {file} is not a gate.json; give evidence/gate.json of a bundle") from None
    check_evidence(recipe, own, f"--evidence {file}")
    return evidence


def check_rehearsal(model: Path) -> None:
    """Refuse a model that the launchers could not load, before the hours that come before the rehearsal.

    Raises:
        ConfigError: it is no folder of a model of the supported kind.
    """
    from firstorder.backends.folder import read_shape
    from firstorder.core.errors import ConfigError

    try:
        read_shape(model)
    except ConfigError as error:
        raise ConfigError(f"--rehearse {model}: {error}") from None
    for wanted in ("tokenizer.json", "*.safetensors"):
        if not any(model.glob(wanted)):
            raise ConfigError(f"--rehearse {model} holds no {wanted}; give a folder of `firstorder coldstart`")


def tried(recipe: Recipe, target: Target, folder: Path, length: int, horizon: int | None) -> dict[str, Any]:
    """The gate as plain numbers, for responses of up to `length` tokens, tried at `horizon` of them; None for as many
    as the trial reaches. The runs behind it stay in `folder`."""
    from firstorder.sim.trials.evidence import judge

    return judge(recipe, target, folder, length, horizon=horizon).json()


def said(gate: dict[str, Any]) -> dict[str, str]:
    """What a gate says, each under its head."""
    tried, target, found = gate["tried"], gate["target"], gate["calibration"]
    updates = "exact expected updates" if tried["responses"] is None else f"{tried['responses']} responses an update"
    lines = {
        "gate": f"{'stable' if gate['stable'] else 'UNSTABLE'}, {collapsed(gate):.0%} of {tried['extent']['seeds']} "
        f"seeds collapse on responses of {tried['horizon']:,} tokens, {tried['extent']['updates']} updates, {updates}",
        "engines": f"KL {found['kl']:.2g} nats a token and {found['flip_rate']:.1%} of routes flipped, for "
        f"{target['kl']:.2g} and {target['flip_rate']:.1%}",
        "extrapolation": str(gate["extrapolation"]["said"]),
    }
    if not gate["stable"]:
        lines |= {"cause": str(gate["cause"]), "remedy": gate["remedy"] or "none was found"}
    return lines


def collapsed(gate: dict[str, Any]) -> float:
    """Share of the twin's seeds that collapsed."""
    from firstorder.sim.trials.neighbours import SELF

    return float(gate["trials"][SELF]["collapsed"]["value"])


def _mean(values: list[Any]) -> float:
    flat = [float(each) for value in values for each in (value if isinstance(value, list) else [value])]
    return sum(flat) / max(1, len(flat))
