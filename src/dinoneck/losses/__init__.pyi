"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.losses.composition import Composed as Composed
from dinoneck.losses.composition import Composition as Composition
from dinoneck.losses.composition import CompositionLoss as CompositionLoss
from dinoneck.losses.gram_anchor import GramAnchor as GramAnchor
from dinoneck.losses.masked import DensityRegulariser as DensityRegulariser
from dinoneck.losses.masked import dense_masked_cosine as dense_masked_cosine
from dinoneck.losses.masked import dense_masked_mse as dense_masked_mse
from dinoneck.losses.masked import map_cross_entropy as map_cross_entropy
from dinoneck.losses.masked import masked_cross_entropy as masked_cross_entropy
from dinoneck.losses.masked import masked_mse as masked_mse
from dinoneck.losses.masked import masked_smooth_l1 as masked_smooth_l1
from dinoneck.losses.masked import ratio_mse as ratio_mse
from dinoneck.losses.masked import scale_invariant_log as scale_invariant_log
from dinoneck.losses.task_loss import TaskLoss as TaskLoss
from dinoneck.losses.task_loss import UncertaintyWeighting as UncertaintyWeighting
