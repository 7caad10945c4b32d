"""Training heads: token sources, folds, the loop, metrics and the baselines."""

from dinoneck.lazy import attach, homes

_HOMES = homes(
    __name__,
    cell_targets=["CellTargets"],
    config=[
        "BackboneConfig",
        "CompositionConfig",
        "DataConfig",
        "FoldsConfig",
        "LoggingConfig",
        "LossConfig",
        "Recipe",
        "TaskConfig",
        "TrainConfig",
    ],
    crossval=["CrossValidation", "cross_validate"],
    ema=["EMA"],
    fitting=["fit"],
    folds=["group_folds"],
    freeze_schedule=["FreezeSchedule"],
    live_tokens=["LiveTokens"],
    metrics=["bootstrap_difference", "confusion_matrix", "mean_iou", "r2", "weighted_r2"],
    mixup=["cutmix", "manifold_mixup"],
    parameter_groups=["param_groups"],
    probes=["knn_probe", "ridge_out_of_fold", "ridge_probe"],
    sam=["SAM"],
    schedule=["cosine_with_warmup"],
    inputs=["Inputs", "open_inputs"],
    sources=["MemoryTokens", "TokenSource"],
    train=["train"],
)

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
