"""Pictures: where a prediction comes from."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.viz.panels import heat as heat
    from dinoneck.viz.panels import prediction_panels as prediction_panels

_HOMES = {"heat": "dinoneck.viz.panels", "prediction_panels": "dinoneck.viz.panels"}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
