"""Photos, tables of photos with targets, and the procedural pasture."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.data.labels import DenseLabels as DenseLabels
    from dinoneck.data.pasture import Pasture as Pasture
    from dinoneck.data.patterns import Pattern as Pattern
    from dinoneck.data.patterns import Patterns as Patterns
    from dinoneck.data.photos import Preprocessing as Preprocessing
    from dinoneck.data.tables import PhotoTable as PhotoTable
    from dinoneck.data.tables import read_csiro as read_csiro
    from dinoneck.data.tables import read_csiro_test as read_csiro_test
    from dinoneck.data.tables import read_csv as read_csv
    from dinoneck.data.z_score import read_z_score as read_z_score

_HOMES = {
    "DenseLabels": "dinoneck.data.labels",
    "Pasture": "dinoneck.data.pasture",
    "Pattern": "dinoneck.data.patterns",
    "Patterns": "dinoneck.data.patterns",
    "Preprocessing": "dinoneck.data.photos",
    "PhotoTable": "dinoneck.data.tables",
    "read_csiro": "dinoneck.data.tables",
    "read_csiro_test": "dinoneck.data.tables",
    "read_csv": "dinoneck.data.tables",
    "read_z_score": "dinoneck.data.z_score",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
