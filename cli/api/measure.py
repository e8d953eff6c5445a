"""One recipe's exact error, bias and variance in the simulator."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from . import parted
from .compose import compose
from .overrides import laid
from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.core.method.recipe import Recipe
    from firstorder.sim.config import Sim
    from firstorder.sim.exact.sampled import Interval
    from firstorder.sim.exact.split import Splits

    from .overrides import Overrides, Source

SCHEMA = "firstorder.measure/1"

# what the table shows, in order, with units; everything else is in the JSON
ROWS = {
    "j_seq": "reward, J of the recipe's target",
    "j_mu": "reward, J of the rollout policy",
    "j_token": "reward, eq. (3)",
    "value_error": "reward, |J(pi) - J(mu) - E[R sum(rho - 1)]|",
    "replay_bias": "reward, J(pi natural) - J(pi)",
    "gradient_error": "relative, best-scaled, own target",
    "gradient_error_raw": "relative, unscaled, own target",
    "update_scale": "the best scale",
    "cosine": "own target",
    "gradient_error_natural": "relative, best-scaled, natural target",
    "cosine_natural": "natural target",
    "variance": "of a minibatch update, trace",
    "mse": "own target, best-scaled: mse_bias + mse_variance",
    "mse_natural": "natural target, best-scaled",
    "mse_bias_natural": "its bias, squared",
    "mse_variance_natural": "its variance",
    "progress": "of one minibatch's best step, share of the exact natural gradient's",
    "progress_ceiling": "the same of ever more responses",
    "responses_for_equal_progress": "for that of a minibatch without mismatch and staleness",
    "kl_mu_old": "nats/token, live routes",
    "kl_mu_old_replayed": "nats/token, the recipe's replay",
    "entropy": "nats/token",
    "flip_rate": "share of (token, layer)",
    "tokens_flipped": "share of tokens",
    "rows_replayed": "share of (token, layer), prompts included",
    "rows_changed": "share of (token, layer) replayed with other experts than the live choice",
}
# what a figure shows, each with the unit of its axis
PICTURED = {
    "gradient_error_natural": "relative to the natural gradient",
    "replay_bias": "reward",
    "value_error": "reward",
    "variance": "trace, one minibatch",
}


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class MeasureResult(Result):
    """A measurement: every number under the name that `docs/measure.md` defines; None where it is not formed."""

    recipe: Recipe
    sim: Sim
    j_seq: float
    j_seq_natural: float
    j_mu: float
    j_mu_theta: float
    j_token: float
    value_error: float
    value_error_natural: float
    approximation_error: float
    replay_bias: float
    expansion: list[float]
    gradient_error: float | None
    gradient_error_raw: float | None
    gradient_error_natural: float | None
    gradient_norm: float
    update_scale: float
    update_scale_natural: float
    cosine: float | None
    cosine_natural: float | None
    variance: float | None
    mse: float | None
    mse_bias: float | None
    mse_variance: float | None
    mse_raw: float | None
    mse_natural: float | None
    mse_bias_natural: float | None
    mse_variance_natural: float | None
    mse_raw_natural: float | None
    progress: float | None
    progress_ceiling: float | None
    responses_for_equal_progress: float | None
    kl_mu_old: float
    kl_mu_old_replayed: float
    log_chi2_seq: float
    entropy: float
    flip_rate: float
    flip_rate_per_layer: list[float]
    tokens_flipped: float
    jaccard: float
    gate_margin: float
    mean_length: float
    nodes: int
    responses: int
    parameters: int
    bounds: Mapping[str, float]
    replay_bounds: Mapping[str, float]
    diagnostics: Mapping[str, float]
    receipts: Mapping[str, Mapping[str, float]]
    replay: Mapping[str, Any]
    terms: Mapping[str, Mapping[str, float | None]]
    mask: Mapping[str, float | None] | None
    intervals: Mapping[str, Interval]
    inert: list[str]
    notes: list[str]
    seconds: float
    split: list[Splits] | None = None

    def blocks(self) -> Iterator[Table | Text]:
        """The table, then the terms beside the weights, which parts are inert, and notes."""
        from rich.table import Table
        from rich.text import Text

        about = f"{self.recipe.about.name}, scope {self.recipe.scope}: {self.nodes} contexts, {self.seconds:.2f} s"
        table = Table(title=about, title_justify="left", box=None, header_style="bold")
        table.add_column("quantity")
        table.add_column("value", justify="right")
        table.add_column("95% interval" if self.intervals else "")
        table.add_column("meaning", style="dim")
        for row in self.records():
            shown = "not formed" if row["value"] is None else f"{row['value']:.6g}"
            interval = "" if row["low"] is None else f"[{row['low']:.4g}, {row['high']:.4g}]"
            table.add_row(row["quantity"], shown, interval, row["meaning"])
        yield table
        if self.split is not None:
            yield from parted.blocks(self.split, self.sim.staleness)
        yield from (Text(f"term {name}: {_said(numbers)}") for name, numbers in self.terms.items())
        yield from (Text(f"inert: {line}", style="yellow") for line in self.inert)
        yield from (Text(f"note: {line}", style="dim") for line in self.notes)

    def records(self) -> list[dict[str, Any]]:
        """A row for each quantity of the table: recipe, quantity, value, ends of its interval, meaning."""
        return [self._record(name) | {"meaning": meaning} for name, meaning in ROWS.items()]

    def plot(self, *others: MeasureResult) -> Figure:
        """Gradient error, replay bias, value error and variance, beside those of other measurements."""
        require_matplotlib()
        from firstorder.cli.report.bars import Bar, bars

        results = (self, *others)
        names = _distinct(results)
        rows = {
            f"{quantity} [{unit}]": [
                Bar(label=name, value=row["value"], low=row["low"], high=row["high"])
                for name, row in zip(names, (each._record(quantity) for each in results), strict=True)
            ]
            for quantity, unit in PICTURED.items()
        }
        return bars(rows)

    def plot_split(self, staleness: int | None = None) -> Figure:
        """The parts of what is off at one minibatch, a bar each, that of `sim.staleness` unless another is named.

        Raises:
            ConfigError: nothing was split there, or matplotlib is not installed.
        """
        return parted.figure(parted.at(self.split, self.sim.staleness if staleness is None else staleness))

    def split_records(self) -> list[dict[str, Any]]:
        """A row for each part of each thing that is split at each minibatch; none where nothing was split."""
        return parted.rows(self.split or [])

    def _record(self, quantity: str) -> dict[str, Any]:
        value = self.replay[quantity] if quantity in self.replay else getattr(self, quantity)
        sampled = self.intervals.get(quantity)
        low, high = (None, None) if sampled is None else (sampled.low, sampled.high)
        return {"recipe": self.recipe.about.name, "quantity": quantity, "value": value, "low": low, "high": high}


def measure(
    recipe: Source, overrides: Overrides = (), *, split: bool = False, strict: bool = False, **keys: Any
) -> MeasureResult:
    """Measure a recipe exactly in the simulator: error, bias and variance of its update.

    Args:
        recipe: a shipped name, a TOML file, or a recipe.
        overrides: settings by dotted key, `{"clip.high": 0.3}`.
        split: split what is off into parts as well, at every minibatch of a step.
        strict: refuse a recipe with parts that cannot act.
        keys: `staleness=2`, a key of `[sim]`, or `clip={"high": 0.3}`, keys of a section.

    Raises:
        ConfigError: an unknown or contradictory setting, or a recipe that cannot be run.
        SizeError: the tree does not fit in memory.
        NotFiniteError: a result is NaN or infinite.
    """
    run = compose(recipe, laid(overrides, keys))  # first: what is wrong with them is said before torch is imported
    import torch

    from firstorder import __version__
    from firstorder.core.training.inert import check_strict
    from firstorder.sim.exact import measure as exact
    from firstorder.sim.exact.sampled import Interval
    from firstorder.sim.exact.steps import of_step

    method, sim = run.recipe, run.sim
    if strict:
        check_strict(exact.inert(method, sim))
    started = time.perf_counter()
    result = exact.measure(method, sim)
    parts = of_step(method, sim) if split else None
    if parts is not None:
        result["split"] = [asdict(each) for each in parts]
    seconds = result["seconds"] = time.perf_counter() - started
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": seconds,
        "torch": torch.__version__,
        "recipe": method.model_dump(),
        "sim": sim.model_dump(),
        "result": result,
    }
    own = {each.name for each in fields(MeasureResult)}
    numbers = {name: value for name, value in result.items() if name in own}
    numbers["intervals"] = {name: Interval(**interval) for name, interval in result["intervals"].items()}
    return MeasureResult(document=document, recipe=method, sim=sim, **numbers | {"split": parts})


def _said(numbers: Mapping[str, float | None]) -> str:
    """The numbers of a term in a line."""
    return ", ".join(f"{name} {'none' if value is None else format(value, '.4g')}" for name, value in numbers.items())


def _distinct(results: tuple[MeasureResult, ...]) -> list[str]:
    """A name for each: its recipe, and on a second line the settings that tell recipes of one name apart."""
    from firstorder.core.settings.toml import flat

    settings = [flat({**each.document["recipe"], "sim": each.document["sim"]}) for each in results]
    differing = [key for key in settings[0] if any(each[key] != settings[0][key] for each in settings)]
    names = [each.recipe.about.name for each in results]
    keys = [key for key in differing if not key.startswith("about.")] if len(set(names)) < len(names) else []
    return [
        "\n".join([name, *(f"{key} = {each[key]}" for key in keys)]) for name, each in zip(names, settings, strict=True)
    ]
