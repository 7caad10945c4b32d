"""Training heads: token sources, folds, the loop, metrics and the baselines."""

from dinoneck.lazy import attach, homes

_HOMES = homes(
    __name__,
    cell_targets=["CellTargets"],
    config_file=["TrainingConfig", "read_config"],
    config_run=["ConfiguredRun"],
    crossval=["cross_validate"],
    experiment=["RunOptions", "run_experiment"],
    fitting=["fit"],
    folds=["group_folds"],
    fpn_yaml=["FPNSettings", "read_fpn_yaml"],
    freeze=["FreezeSchedule"],
    head_choice=["HeadChoice"],
    loggers=["TensorBoardLogger", "WandbLogger"],
    metrics=["bootstrap_difference", "confusion_matrix", "mean_iou", "r2", "weighted_r2"],
    mixup=["cutmix", "manifold_mixup"],
    optim=["EMA", "SAM", "cosine_with_warmup"],
    parameter_groups=["param_groups"],
    plan=["Plan"],
    probes=["knn_probe", "ridge_out_of_fold", "ridge_probe"],
    recipe=["Recipe"],
    sources=["LiveTokens", "MemoryTokens", "TokenSource"],
)

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
