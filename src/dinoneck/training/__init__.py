"""Training heads: token sources, folds, the loop, metrics and the baselines."""

from dinoneck.lazy import attach, homes

_HOMES = homes(
    __name__,
    config=[
        "BackboneConfig",
        "CompositionConfig",
        "DataConfig",
        "FoldsConfig",
        "LoggingConfig",
        "LossConfig",
        "TaskConfig",
        "TrainConfig",
    ],
    detector_config=["DetectorConfig"],
    fitting=["fit"],
    folds=["group_folds"],
    loggers=["TensorBoardLogger", "WandbLogger"],
    metrics=["confusion_matrix", "mean_iou", "r2", "weighted_r2"],
    mixup=["cutmix", "manifold_mixup"],
    optim=["EMA", "SAM", "cosine_with_warmup"],
    parameter_groups=["FreezeSchedule", "param_groups"],
    probes=["knn_probe", "ridge_probe"],
    sources=["LiveTokens", "MemoryTokens", "TokenSource"],
    recipe=["Recipe"],
    run=["train"],
)

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
