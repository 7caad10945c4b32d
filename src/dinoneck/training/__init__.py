"""Training heads: token sources, folds, the loop, metrics and the baselines."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    baselines=["ridge_probe"],
    config=[
        "BackboneConfig",
        "BoxesDataConfig",
        "CompositionConfig",
        "DataConfig",
        "DetectorConfig",
        "FoldsConfig",
        "HeldOutConfig",
        "InstancesDataConfig",
        "LossConfig",
        "PlainFoldsConfig",
        "TaskConfig",
        "TrainConfig",
        "TrainDetectorConfig",
        "TrainInstancesConfig",
        "read_config",
    ],
    fitting=["fit"],
    folds=["group_folds"],
    linear_average=["with_linear_baseline"],
    optim=["EMA", "SAM", "cosine_with_warmup", "cutmix", "manifold_mixup"],
    parameter_groups=["FreezeSchedule", "param_groups"],
    recipe=["DetectorRecipe", "Recipe"],
    from_python=["train"],
    result=["TrainingResult"],
    scores=["r2", "weighted_r2"],
    token_sources=["LiveTokens", "MemoryTokens", "TokenSource"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
