"""Pictures: where a prediction comes from.

Every figure has a file of its own, named after what it shows; they share ``sheet.py`` (layout, captions, colour bars,
the only matplotlib) and ``arrays.py``. ``panels.py`` needs Pillow alone. ``report/`` is the HTML page.
"""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.viz.clouds import points_figure as points_figure
    from dinoneck.viz.detections import boxes_figure as boxes_figure
    from dinoneck.viz.fusion_weights import fusion_figure as fusion_figure
    from dinoneck.viz.gate_maps import gate_figure as gate_figure
    from dinoneck.viz.heat_maps import heat_figure as heat_figure
    from dinoneck.viz.panels import heat as heat
    from dinoneck.viz.panels import prediction_panels as prediction_panels
    from dinoneck.viz.pca import PCABasis as PCABasis
    from dinoneck.viz.pca import pca_rgb as pca_rgb
    from dinoneck.viz.pca_pictures import pca_figure as pca_figure
    from dinoneck.viz.pyramids import pyramid_figure as pyramid_figure
    from dinoneck.viz.report.page import html_report as html_report
    from dinoneck.viz.report.photos import ReportEntry as ReportEntry
    from dinoneck.viz.residuals import residual_figure as residual_figure

_HOMES = {
    "points_figure": "dinoneck.viz.clouds",
    "boxes_figure": "dinoneck.viz.detections",
    "fusion_figure": "dinoneck.viz.fusion_weights",
    "gate_figure": "dinoneck.viz.gate_maps",
    "heat_figure": "dinoneck.viz.heat_maps",
    "heat": "dinoneck.viz.panels",
    "prediction_panels": "dinoneck.viz.panels",
    "PCABasis": "dinoneck.viz.pca",
    "pca_rgb": "dinoneck.viz.pca",
    "html_report": "dinoneck.viz.report.page",
    "ReportEntry": "dinoneck.viz.report.photos",
    "pca_figure": "dinoneck.viz.pca_pictures",
    "pyramid_figure": "dinoneck.viz.pyramids",
    "residual_figure": "dinoneck.viz.residuals",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
