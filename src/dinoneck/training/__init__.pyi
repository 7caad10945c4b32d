"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.training.baselines import ridge_probe as ridge_probe
from dinoneck.training.config import BackboneConfig as BackboneConfig
from dinoneck.training.config import CompositionConfig as CompositionConfig
from dinoneck.training.config import DataConfig as DataConfig
from dinoneck.training.config import DetectorConfig as DetectorConfig
from dinoneck.training.config import FoldsConfig as FoldsConfig
from dinoneck.training.config import LossConfig as LossConfig
from dinoneck.training.config import TaskConfig as TaskConfig
from dinoneck.training.config import TrainConfig as TrainConfig
from dinoneck.training.fitting import fit as fit
from dinoneck.training.folds import group_folds as group_folds
from dinoneck.training.optim import EMA as EMA
from dinoneck.training.optim import SAM as SAM
from dinoneck.training.optim import cosine_with_warmup as cosine_with_warmup
from dinoneck.training.optim import cutmix as cutmix
from dinoneck.training.optim import manifold_mixup as manifold_mixup
from dinoneck.training.parameter_groups import FreezeSchedule as FreezeSchedule
from dinoneck.training.parameter_groups import param_groups as param_groups
from dinoneck.training.recipe import Recipe as Recipe
from dinoneck.training.run import train as train
from dinoneck.training.scores import r2 as r2
from dinoneck.training.scores import weighted_r2 as weighted_r2
from dinoneck.training.token_sources import LiveTokens as LiveTokens
from dinoneck.training.token_sources import MemoryTokens as MemoryTokens
from dinoneck.training.token_sources import TokenSource as TokenSource
