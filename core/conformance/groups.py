"""Groups of rewards, and critics' values, whose advantages are among the golden vectors."""

from __future__ import annotations

from dataclasses import dataclass

from .cases import Numbers, Rows

GROUPS: dict[str, Rows] = {
    "pair": ((1.0, 0.0),),
    "binary": ((1.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 0.0)),
    "graded": ((0.25, -1.5, 3.0, 0.75, 0.0),),
    "agreeing": ((0.7, 0.7, 0.7),),
    "single": ((1.0,), (-2.5,)),
    "nearly_agreeing": ((1.0, 1.0, 1.000001, 1.0),),
}
"""By name, `[groups, G]` in units of reward: responses to one prompt stand together."""

RULES: dict[str, dict[str, str | bool]] = {
    "none": {"advantage.baseline": "none", "advantage.std": False},
    "group_mean": {"advantage.baseline": "group_mean", "advantage.std": False},
    "group_mean_std": {"advantage.baseline": "group_mean", "advantage.std": True},
    "leave_one_out": {"advantage.baseline": "leave_one_out", "advantage.std": False},
    "leave_one_out_std": {"advantage.baseline": "leave_one_out", "advantage.std": True},
    "whitened": {"advantage.baseline": "none", "advantage.std": False, "advantage.scale": "whiten"},
    "group_mean_whitened": {"advantage.baseline": "group_mean", "advantage.std": False, "advantage.scale": "whiten"},
    "group_mean_batch_std": {
        "advantage.baseline": "group_mean",
        "advantage.std": False,
        "advantage.scale": "batch_std",
    },
}
"""By name, the keys of a rule that reads rewards alone; one with a scale takes all groups for the batch, and every
response for one token."""


@dataclass(frozen=True, kw_only=True)
class Valued:
    """Responses with a value of every context: `values` and `mask` `[B, T]`, `rewards` `[B]` after the last token."""

    values: Rows
    mask: tuple[tuple[int, ...], ...]
    rewards: Numbers


VALUED: dict[str, Valued] = {
    "whole": Valued(values=((0.25, 0.5, 0.125), (0.5, 0.75, 1.0)), mask=((1, 1, 1), (1, 1, 1)), rewards=(1.0, 0.0)),
    "holes": Valued(
        values=((9.0, 0.3, 0.6, 9.0, 0.45, 9.0), (9.0, 9.0, -0.2, 9.0, 9.0, 9.0)),
        mask=((0, 1, 1, 0, 1, 0), (0, 0, 1, 0, 0, 0)),
        rewards=(0.8, -1.0),
    ),
}
LAMBDAS: dict[str, float] = {"gae_1": 1.0, "gae_0.95": 0.95, "gae_0.5": 0.5, "gae_0": 0.0}
"""By the name of a rule, `advantage.gae_lambda` of `advantage.baseline = "value"`; there is one more of each,
`gae_1_whitened` and so on, with `advantage.scale = "whiten"`."""
