"""Training heads: token sources, folds, the loop, metrics and the baselines."""

from dinoneck.lazy import attach, homes

_HOMES = homes(
    __name__,
    cell_targets=["CellTargets"],
    config_file=["TrainingConfig", "read_config"],
    config_run=["ConfiguredRun"],
    crossval=["cross_validate"],
    ema=["EMA"],
    experiment=["RunOptions", "run_experiment"],
    fitting=["fit"],
    folds=["group_folds"],
    fpn_yaml=["FPNSettings", "read_fpn_yaml"],
    freeze_schedule=["FreezeSchedule"],
    head_choice=["HeadChoice"],
    live_tokens=["LiveTokens"],
    metrics=["accuracy", "bootstrap_difference", "confusion_matrix", "f1_scores", "mean_iou", "r2", "weighted_r2"],
    mixup=["cutmix", "manifold_mixup"],
    parameter_groups=["param_groups"],
    plan=["Plan"],
    probes=["knn_probe", "ridge_out_of_fold", "ridge_probe"],
    recipe=["Recipe"],
    sam=["SAM"],
    schedule=["cosine_with_warmup"],
    sources=["MemoryTokens", "TokenSource"],
)

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
