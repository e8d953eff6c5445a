"""The `[sim]` section: its keys, and what they cannot be together."""

from ..engine import Numerics as Numerics
from .sim import MODES as MODES
from .sim import Sim as Sim
