"""Tables of alarms for tests: made up, and so small that every threshold can be worked out by hand."""

from firstorder.core.runs.alarm_table import SCHEMA, Alarm, HeldOut, Interval, Quartiles, Table, Threshold

SHARE = Interval(value=0.5, low=0.25, high=0.75)
HELD_OUT = HeldOut(
    auc=SHARE,
    hits=SHARE,
    false_alarms=Interval(value=0.05, low=0.0, high=0.1),
    precision=SHARE,
    lead=Quartiles(low=4, median=8, high=12),
    collapsed=8,
    stable=8,
)


def alarm(name="high", quantity="x", constant=0.0, **more):
    """A level of one update, on a linear scale."""
    given = {"window": 1, "side": "high", "scale": "linear", "cause": "a cause", "remedy": "a remedy"} | more
    threshold = Threshold(constant=constant, **given.pop("threshold", {}))
    return Alarm(name=name, quantity=quantity, threshold=threshold, held_out=HELD_OUT, **given)


def table(*alarms, length=(1, 1000), minibatches=(1, 8)):
    """A table of these, fitted for any entropy and KL."""

    def held(low, high):
        return {"low": low, "high": high}

    return Table.model_validate(
        {
            "schema": SCHEMA,
            "false_alarms": 0.05,
            "regime": {
                "response_length": held(*length),
                "minibatches": held(*minibatches),
                "entropy": held(0, 10),
                "k3_kl": held(0, 10),
            },
            "fit": {
                "version": "0",
                "seeds": (0, 7),
                "updates": 96,
                "conditions": ("any",),
                "rule": "none",
                "standing": "made up",
            },
            "alarms": alarms,
        }
    )


def history(*, length=100.0, entropy=0.5, kl=0.01, **quantities):
    """The lines of a run: every quantity a list over its steps, None where it is not logged."""
    steps = len(next(iter(quantities.values())))
    for step in range(steps):
        own = {name: values[step] for name, values in quantities.items() if values[step] is not None}
        yield {"step": step, "response_length": length, "update/entropy": entropy, "k3_kl": kl} | own
