"""The paper's training findings, settled on ensembles of simulated runs."""

from firstorder.sim.trials.budget import Budget

from . import discrepancy, findings, long_findings, predictors

TRAINING = (*discrepancy.CLAIMS, *findings.CLAIMS, *predictors.CLAIMS, *long_findings.CLAIMS)
# Settings and rules were chosen on seeds below 1000; a run is one seed of one recipe in one condition.
TRAINING_FULL = Budget(policies=16, draws=1, first_seed=1000)
TRAINING_QUICK = Budget(policies=4, draws=1, first_seed=1000)

__all__ = ["TRAINING", "TRAINING_FULL", "TRAINING_QUICK"]
