"""The regime that a run, a probe or an audit was in: what `recommend` reads in place of options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

Read = dict[str, float]
"""Of `kl`, `flips`, `n`, `horizon`, `group` and `entropy` those that the evidence holds."""
_LOGGED = {"kl": ("k3_kl", "kl"), "flips": ("route/flip_rate",), "entropy": ("update/entropy",)}
_REMEDY = "give the folder of a run, or what `firstorder probe` or `firstorder audit` wrote with --json"


def read_match(match: str) -> Read:
    """The regime of a run folder, or of the JSON of a probe or an audit.

    Raises:
        ConfigError: it is none of these, or holds none of the numbers.
    """
    from firstorder.core.errors import ConfigError

    found = _of_run(Path(match)) if Path(match).is_dir() else _of_json(match)
    found = {name: value for name, value in found.items() if value > 0}
    if "kl" not in found and "flips" not in found:
        raise ConfigError(f"--match {match} holds neither a KL nor a flip rate above 0; {_REMEDY}")
    return found


def _of_run(folder: Path) -> Read:
    from firstorder.core.errors import ConfigError
    from firstorder.core.runs.logs import whole
    from firstorder.core.settings.toml import parse

    for name in ("metrics.jsonl", "config.toml"):
        if not (folder / name).is_file():
            raise ConfigError(f"--match {folder} holds no {name}; {_REMEDY}")
    lines = whole(folder / "metrics.jsonl", 0, "resume that run, or give another")
    found = {name: _mean(lines, keys) for name, keys in _LOGGED.items()}
    config = parse(folder / "config.toml")
    schedule = config.get("schedule", {})
    lengths = config.get("sim", {}).get("horizon") or config.get("vllm", {}).get("max_tokens")
    settings = {"n": schedule.get("minibatches"), "group": schedule.get("group_size"), "horizon": lengths}
    return {name: float(x) for name, x in (found | settings).items() if isinstance(x, int | float)}


def _mean(lines: list[dict[str, Any]], keys: tuple[str, ...]) -> float | None:
    """The mean over steps, and over members, of the first key that every step has."""
    for key in keys:
        values = [line.get(key) for line in lines]
        flat = [x for value in values for x in (value if isinstance(value, list) else [value])]
        known = [float(x) for x in flat if isinstance(x, int | float)]
        if known and len(known) == len(flat):
            return fmean(known)
    return None


def _of_json(match: str) -> Read:
    from firstorder.core.errors import ConfigError

    try:
        if Path(match).exists() and not Path(match).is_file():  # a device is read without end
            raise OSError("not a file")
        document = json.loads(Path(match).read_text(encoding="utf-8"))
        schema = str(document["schema"]).partition("/")[0]
        reader = {"firstorder.probe": _of_probe, "firstorder.audit": _of_audit}[schema]
        return reader(document)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise ConfigError(f"--match {match} is no run, probe or audit; {_REMEDY}") from None


def _of_probe(document: Mapping[str, Any]) -> Read:
    """The one point of a probe."""
    from firstorder.core.errors import ConfigError

    points = [each for each in document["result"] if "error" not in each]
    if len(points) != 1:
        raise ConfigError(f"--match is a probe of {len(points)} points, and a regime is one; probe one without --grid")
    routes, live = points[0].get("routes", {}), points[0]["live"]
    found = {"kl": live.get("k3_kl", live.get("kl")), "flips": routes.get("route/flip_rate")}
    found |= {"entropy": routes.get("update/entropy")}
    return {name: float(x) for name, x in found.items() if isinstance(x, int | float)}


def _of_audit(document: Mapping[str, Any]) -> Read:
    """The table of numbers of an audit, and the N it was told."""
    tables = {table["name"]: table["rows"] for table in document["result"]["tables"]}
    values = {row["quantity"]: row["value"] for row in tables.get("numbers", [])}
    flat = {name: x["value"] if isinstance(x, Mapping) else x for name, x in values.items()}
    found = {name: next((flat[key] for key in keys if key in flat), None) for name, keys in _LOGGED.items()}
    found |= {"horizon": flat.get("response_length"), "n": document.get("options", {}).get("minibatches")}
    return {name: float(x) for name, x in found.items() if isinstance(x, int | float)}
