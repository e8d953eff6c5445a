"""firstorder: stable reinforcement learning of Mixture-of-Experts language models, exact before it is large.

    import firstorder as fo
    fo.measure("minirl-r3", staleness=2)

Each name is imported when it is first used.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstorder.cli.api.audit import AuditResult, audit
    from firstorder.cli.api.coldstart import coldstart
    from firstorder.cli.api.conformance import ConformanceResult, VectorsResult, conformance, conformance_vectors
    from firstorder.cli.api.doctor import DoctorResult, doctor
    from firstorder.cli.api.explore import ExploreResult, explore
    from firstorder.cli.api.keys import KeysResult, keys
    from firstorder.cli.api.measure import MeasureResult, measure
    from firstorder.cli.api.pair import PairResult
    from firstorder.cli.api.peers import PeersResult, conformance_peers
    from firstorder.cli.api.probe import ProbeResult, probe
    from firstorder.cli.api.promote import PromoteResult, promote
    from firstorder.cli.api.recipes import RecipesResult, recipe, recipes
    from firstorder.cli.api.recommend import RecommendResult, recommend
    from firstorder.cli.api.report import ReportResult, report
    from firstorder.cli.api.resume import resume
    from firstorder.cli.api.study import StudiesResult, StudyResult, studies, study
    from firstorder.cli.api.sweep import SweepResult, sweep
    from firstorder.cli.api.train import TrainResult, train
    from firstorder.cli.api.validate import ValidateResult, validate
    from firstorder.cli.progress import progress
    from firstorder.core.errors import (
        ConfigError,
        DataError,
        DiskError,
        FirstOrderError,
        NotFiniteError,
        ReplayError,
        SizeError,
        WorkerError,
    )
    from firstorder.core.method.recipe import Recipe
    from firstorder.core.training.interrupt import Interrupted

__version__ = "0.2.0"

if "torch" not in sys.modules:  # which reads it when it is imported; see core.threads
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__all__ = [
    "AuditResult",
    "ConfigError",
    "ConformanceResult",
    "DataError",
    "DiskError",
    "DoctorResult",
    "ExploreResult",
    "FirstOrderError",
    "Interrupted",
    "KeysResult",
    "MeasureResult",
    "NotFiniteError",
    "PairResult",
    "PeersResult",
    "ProbeResult",
    "PromoteResult",
    "Recipe",
    "RecipesResult",
    "RecommendResult",
    "ReplayError",
    "ReportResult",
    "SizeError",
    "StudiesResult",
    "StudyResult",
    "SweepResult",
    "TrainResult",
    "ValidateResult",
    "VectorsResult",
    "WorkerError",
    "audit",
    "coldstart",
    "conformance",
    "conformance_peers",
    "conformance_vectors",
    "doctor",
    "explore",
    "keys",
    "measure",
    "probe",
    "progress",
    "promote",
    "recipe",
    "recipes",
    "recommend",
    "report",
    "resume",
    "studies",
    "study",
    "sweep",
    "train",
    "validate",
]

_HOMES = {
    "cli.api.audit": ["AuditResult", "audit"],
    "cli.api.coldstart": ["coldstart"],
    "cli.api.conformance": ["ConformanceResult", "VectorsResult", "conformance", "conformance_vectors"],
    "cli.api.doctor": ["DoctorResult", "doctor"],
    "cli.api.explore": ["ExploreResult", "explore"],
    "cli.api.keys": ["KeysResult", "keys"],
    "cli.api.measure": ["MeasureResult", "measure"],
    "cli.api.pair": ["PairResult"],
    "cli.api.peers": ["PeersResult", "conformance_peers"],
    "cli.api.probe": ["ProbeResult", "probe"],
    "cli.api.promote": ["PromoteResult", "promote"],
    "cli.api.recipes": ["RecipesResult", "recipe", "recipes"],
    "cli.api.recommend": ["RecommendResult", "recommend"],
    "cli.api.report": ["ReportResult", "report"],
    "cli.api.resume": ["resume"],
    "cli.api.study": ["StudiesResult", "StudyResult", "studies", "study"],
    "cli.api.sweep": ["SweepResult", "sweep"],
    "cli.api.train": ["TrainResult", "train"],
    "cli.api.validate": ["ValidateResult", "validate"],
    "cli.progress": ["progress"],
    "core.errors": [
        "ConfigError",
        "DataError",
        "DiskError",
        "FirstOrderError",
        "NotFiniteError",
        "ReplayError",
        "SizeError",
        "WorkerError",
    ],
    "core.method.recipe": ["Recipe"],
    "core.training.interrupt": ["Interrupted"],
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"firstorder.{home}"), name)
            return value
    raise AttributeError(f"module 'firstorder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
