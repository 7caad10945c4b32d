"""The recipe, see :mod:`dinoneck.training.config`."""

from dinoneck.training.config import Recipe as Recipe
