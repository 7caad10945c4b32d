"""Training heads: token sources, folds, the loop, metrics and the baselines."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.training.cell_targets import CellTargets as CellTargets
    from dinoneck.training.config_file import TrainingConfig as TrainingConfig
    from dinoneck.training.config_file import read_config as read_config
    from dinoneck.training.config_run import ConfiguredRun as ConfiguredRun
    from dinoneck.training.crossval import cross_validate as cross_validate
    from dinoneck.training.ema import EMA as EMA
    from dinoneck.training.experiment import RunOptions as RunOptions
    from dinoneck.training.experiment import run_experiment as run_experiment
    from dinoneck.training.fitting import fit as fit
    from dinoneck.training.folds import group_folds as group_folds
    from dinoneck.training.fpn_yaml import FPNSettings as FPNSettings
    from dinoneck.training.fpn_yaml import read_fpn_yaml as read_fpn_yaml
    from dinoneck.training.freeze_schedule import FreezeSchedule as FreezeSchedule
    from dinoneck.training.head_choice import HeadChoice as HeadChoice
    from dinoneck.training.live_tokens import LiveTokens as LiveTokens
    from dinoneck.training.metrics import bootstrap_difference as bootstrap_difference
    from dinoneck.training.metrics import confusion_matrix as confusion_matrix
    from dinoneck.training.metrics import mean_iou as mean_iou
    from dinoneck.training.metrics import r2 as r2
    from dinoneck.training.metrics import weighted_r2 as weighted_r2
    from dinoneck.training.mixup import cutmix as cutmix
    from dinoneck.training.mixup import manifold_mixup as manifold_mixup
    from dinoneck.training.parameter_groups import param_groups as param_groups
    from dinoneck.training.plan import Plan as Plan
    from dinoneck.training.probes import knn_probe as knn_probe
    from dinoneck.training.probes import ridge_out_of_fold as ridge_out_of_fold
    from dinoneck.training.probes import ridge_probe as ridge_probe
    from dinoneck.training.recipe import Recipe as Recipe
    from dinoneck.training.sam import SAM as SAM
    from dinoneck.training.schedule import cosine_with_warmup as cosine_with_warmup
    from dinoneck.training.sources import MemoryTokens as MemoryTokens
    from dinoneck.training.sources import TokenSource as TokenSource

_HOMES = {
    "FPNSettings": "dinoneck.training.fpn_yaml",
    "read_fpn_yaml": "dinoneck.training.fpn_yaml",
    "knn_probe": "dinoneck.training.probes",
    "SAM": "dinoneck.training.sam",
    "LiveTokens": "dinoneck.training.live_tokens",
    "EMA": "dinoneck.training.ema",
    "CellTargets": "dinoneck.training.cell_targets",
    "TrainingConfig": "dinoneck.training.config_file",
    "read_config": "dinoneck.training.config_file",
    "ConfiguredRun": "dinoneck.training.config_run",
    "cross_validate": "dinoneck.training.crossval",
    "Plan": "dinoneck.training.plan",
    "RunOptions": "dinoneck.training.experiment",
    "run_experiment": "dinoneck.training.experiment",
    "fit": "dinoneck.training.fitting",
    "Recipe": "dinoneck.training.recipe",
    "group_folds": "dinoneck.training.folds",
    "FreezeSchedule": "dinoneck.training.freeze_schedule",
    "HeadChoice": "dinoneck.training.head_choice",
    "bootstrap_difference": "dinoneck.training.metrics",
    "confusion_matrix": "dinoneck.training.metrics",
    "mean_iou": "dinoneck.training.metrics",
    "r2": "dinoneck.training.metrics",
    "weighted_r2": "dinoneck.training.metrics",
    "cutmix": "dinoneck.training.mixup",
    "manifold_mixup": "dinoneck.training.mixup",
    "param_groups": "dinoneck.training.parameter_groups",
    "ridge_out_of_fold": "dinoneck.training.probes",
    "ridge_probe": "dinoneck.training.probes",
    "cosine_with_warmup": "dinoneck.training.schedule",
    "MemoryTokens": "dinoneck.training.sources",
    "TokenSource": "dinoneck.training.sources",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
