"""Tables of settings, quantities, recipes and options, from the code that declares them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import typer.main
from pydantic import BaseModel

from firstorder.backends import pair
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.cli.api.keys import TRAINED
from firstorder.cli.main import app
from firstorder.cli.report.sweeps import OUTCOMES
from firstorder.core.method import parts as method_parts
from firstorder.core.method import surrogate, term_kinds, terms, value
from firstorder.core.method.recipe import Recipe
from firstorder.core.quantities import Quantity
from firstorder.core.runs import alarm_table
from firstorder.core.settings.described import default, takes
from firstorder.core.settings.toml import build, read, shipped
from firstorder.core.training import backend, diagnostics, inert, kept, loop, replay, strata
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact import quantities as exact
from firstorder.sim.exact import terms as of_terms
from firstorder.sim.exact.forms import form
from firstorder.sim.training import halves
from firstorder.sim.training.backend import EXACT

SECTIONS: dict[str, type[BaseModel]] = {
    "sim": Sim,
    "numerics": Numerics,
    "torchtitan": Torchtitan,
    "vllm": Vllm,
    "task": TaskSettings,
    **{name: field.annotation for name, field in Recipe.model_fields.items() if field.annotation},
}
PARTS = (
    *("ratios", "spans", "corrections", "rejections", "overs", "clips"),
    *("aggregations", "baselines", "scales", "replays", "terms", "estimators"),
)


def rows(heads: Iterable[str], cells: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (heads, *cells)]
    first, *others = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([first, "|---" * len(lines[0]) + "|", *others])


def keys(section: str, part: str = "") -> str:
    """The settings of a section; of `sim` those that a measurement reads, or with `training` the others."""
    fields = SECTIONS[section].model_fields.items()
    wanted = [
        (key, field) for key, field in fields if section != "sim" or (f"sim.{key}" in TRAINED) == (part == "training")
    ]
    return rows(
        ("key", "default", "takes", "meaning"),
        ((f"`{key}`", default(field.default), takes(field), field.description or "") for key, field in wanted),
    )


def groups() -> dict[str, Mapping[str, Quantity]]:
    """Everything that is reported, by the table that it stands in; layers are one row, the layer being N."""
    (layer,) = backend.layer_flips(1).values()
    of_layers = {name: one for name, one in replay.quantities(1).items() if name not in replay.QUANTITIES}
    flips = {"route/flip_rate_layer_N": replace(layer, formula=layer.formula.replace("layer 0", "layer N"))}
    routes = {name: one for name, one in backend.QUANTITIES.items() if name.startswith("route/")}
    updates = {name: one for name, one in backend.QUANTITIES.items() if name not in routes}
    rewards = {name: one for name, one in loop.QUANTITIES.items() if name.startswith("reward")}
    return {
        "values": exact.VALUES,
        "gradients": exact.GRADIENTS,
        "engines": exact.ENGINES,
        "sizes": exact.SIZES,
        "mask": exact.MASK,
        "batch": diagnostics.QUANTITIES | strata.QUANTITIES | rewards,
        "routes": routes
        | flips
        | updates
        | halves.QUANTITIES
        | {n: one for n, one in loop.QUANTITIES.items() if n not in rewards},
        "exact": EXACT,
        "critic": value.QUANTITIES,
        "terms": terms.QUANTITIES,
        "each_term": of_terms.REPORTED,
        "receipts": surrogate.RECEIPTS,
        "replay": replay.QUANTITIES
        | {
            name.replace("layer_0", "layer_N"): replace(one, formula=one.formula.replace("layer 0", "layer N"))
            for name, one in of_layers.items()
        },
        "masks": kept.QUANTITIES,
        "inert": inert.QUANTITIES,
        "pair": pair.QUANTITIES,
    }


def quantities(group: str) -> str:
    """What is reported under which name."""
    return rows(
        ("name", "formula", "unit", "source"),
        ((f"`{name}`", one.formula, one.unit, one.source) for name, one in groups()[group].items()),
    )


def outcomes() -> str:
    """What `summary.parquet` keeps of each seed of a cell."""
    return rows(("column", "meaning", "unit"), ((f"`{one.key}`", one.meaning, one.unit) for one in OUTCOMES))


def alarms() -> str:
    """The alarms of the package, with their worth on conditions that their thresholds were not fitted on."""
    shown = (
        (
            f"`{alarm.name}`",
            f"{alarm.held_out.auc.value:.2f} [{alarm.held_out.auc.low:.2f}, {alarm.held_out.auc.high:.2f}]",
            str(alarm.held_out.hits),
            str(alarm.held_out.false_alarms),
            f"{alarm.held_out.lead.median:g} [{alarm.held_out.lead.low:g}, {alarm.held_out.lead.high:g}]",
            alarm.cause,
            alarm.remedy,
        )
        for alarm in alarm_table.shipped().alarms
    )
    if not alarm_table.shipped().alarms:
        return "None: no way to read a log passed the rule. How near each came: [What warns](collapse.md#warnings)."
    heads = ("alarm", "AUC", "collapses that it comes before", "false alarms", "lead, updates", "points to", "change")
    return rows(heads, shown)


def recipes() -> str:
    """The shipped recipes."""
    return rows(("recipe", "scope", "weight", "summary", "source"), map(_recipe, shipped()))


def _recipe(name: str) -> list[str]:
    recipe = build(Recipe, read(name))
    about = recipe.about
    scopes = ("not run", "") if about.unsupported else (recipe.scope, recipe.weight_scope)
    return [f"`{name}`", *scopes, about.summary, about.source]


def forms() -> str:
    """How the expected update of each shipped recipe is made on a graph; those that are not run are left out."""
    recipes = {name: build(Recipe, read(name)) for name in shipped()}
    return rows(
        ("recipe", "on the graph", "why"),
        ((f"`{name}`", *_made(recipe)) for name, recipe in recipes.items() if not recipe.about.unsupported),
    )


def _made(recipe: Recipe) -> tuple[str, str]:
    found = form(recipe)
    if found is None:
        return "sampled", " with ".join(_without_form(recipe))
    products = {
        "before it": found.before,
        "after it": found.after,
        "right after it": (found.ahead,) * bool(found.ahead),
    }
    reach = [f"the product of {', '.join(f'`{one}`' for one in of)} {where}" for where, of in products.items() if of]
    reach += ["the mask of a whole response, a product of 0 and 1"] * found.masked
    if reach:
        return "exact, by product", "a weight of the token and " + " and ".join(reach)
    return "exact, by edge", "a weight of the token alone"


def _without_form(recipe: Recipe) -> list[str]:
    """The part but for which there were a form."""
    neutral = {
        "advantage": ({"baseline": "none"}, f"`advantage.baseline = {recipe.advantage.baseline}`"),
        "clip": ({"kind": "none"}, f"`clip.kind = {recipe.clip.kind}`"),
        "correction": ({"kind": "none"}, f"`correction.kind = {recipe.correction.kind}`"),
        "rejection": ({"kind": "none"}, f"`rejection.over = {recipe.rejection.over}`"),
        "ratio": ({"span": "token"}, f"`ratio.span = {recipe.ratio.span}`"),
    }
    without = {
        said: recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=change)})
        for section, (change, said) in neutral.items()
    }
    alone = [said for said, other in without.items() if form(other) is not None]
    return alone or list(without)


def parts(section: str) -> str:
    """The kinds of a part of the weight, or of a term beside it."""
    named = {"of": "`ratio.of`" if section == "clips" else "its `of`", None: ""}
    source = term_kinds if hasattr(term_kinds, section.upper()) else method_parts
    return rows(
        ("kind", "makes", "keys", "compares", "scope", "source"),
        (
            (
                f"`{kind}`",
                part.formula,
                ", ".join(f"`{key}`" for key in part.keys),
                named.get(part.compares, f"`{part.compares}`"),
                part.scope,
                part.source,
            )
            for kind, part in getattr(source, section.upper()).items()
        ),
    )


def options(command: str) -> str:
    """The arguments and options of a command, as its `--help` has them."""
    known = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    return rows(("option", "default", "meaning"), (_option(each) for each in known.params if each.name != "help"))


def _option(given: Any) -> list[str]:
    value = given.metavar or given.name.upper()
    if given.param_type_name == "argument":
        return [f"`{value}`", "required" if given.required else "", given.help]
    standing = "" if given.is_flag or given.multiple or given.default is None else f"`{given.default}`"
    flag = given.opts[0] if given.is_flag else f"{given.opts[0]} {value}"
    return [f"`{flag}`", "required" if given.required else standing, given.help]
