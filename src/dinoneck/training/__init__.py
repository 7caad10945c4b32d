"""Training heads: token sources, folds, the loop, metrics and the baselines."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.training.crossval import Plan as Plan
    from dinoneck.training.crossval import cross_validate as cross_validate
    from dinoneck.training.experiment import run_experiment as run_experiment
    from dinoneck.training.fitting import Recipe as Recipe
    from dinoneck.training.fitting import fit as fit
    from dinoneck.training.folds import group_folds as group_folds
    from dinoneck.training.freeze_schedule import FreezeSchedule as FreezeSchedule
    from dinoneck.training.metrics import r2 as r2
    from dinoneck.training.metrics import weighted_r2 as weighted_r2
    from dinoneck.training.parameter_groups import param_groups as param_groups
    from dinoneck.training.probes import ridge_out_of_fold as ridge_out_of_fold
    from dinoneck.training.probes import ridge_probe as ridge_probe
    from dinoneck.training.schedule import cosine_with_warmup as cosine_with_warmup
    from dinoneck.training.sources import MemoryTokens as MemoryTokens
    from dinoneck.training.sources import TokenSource as TokenSource

_HOMES = {
    "Plan": "dinoneck.training.crossval",
    "cross_validate": "dinoneck.training.crossval",
    "run_experiment": "dinoneck.training.experiment",
    "Recipe": "dinoneck.training.fitting",
    "fit": "dinoneck.training.fitting",
    "group_folds": "dinoneck.training.folds",
    "FreezeSchedule": "dinoneck.training.freeze_schedule",
    "r2": "dinoneck.training.metrics",
    "weighted_r2": "dinoneck.training.metrics",
    "param_groups": "dinoneck.training.parameter_groups",
    "ridge_out_of_fold": "dinoneck.training.probes",
    "ridge_probe": "dinoneck.training.probes",
    "cosine_with_warmup": "dinoneck.training.schedule",
    "MemoryTokens": "dinoneck.training.sources",
    "TokenSource": "dinoneck.training.sources",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
