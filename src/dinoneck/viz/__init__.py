"""Figures and reports: where a prediction comes from.

Figures are matplotlib's; ``drawing.py`` holds what they share and checks their numbers. ``panels.py``
needs Pillow alone. ``report.py`` fills ``report.html.j2``, one HTML file.
"""

from dinoneck.lazy import attach, homes

_HOMES = homes(
    __name__,
    clouds=["points_figure"],
    detections=["boxes_figure"],
    entries=["ReportEntry"],
    images=["fusion_figure", "gate_figure", "pca_figure", "pyramid_figure"],
    panels=["heat", "prediction_panels"],
    pca=["PCABasis", "pca_rgb"],
    report=["html_report"],
    residuals=["residual_figure"],
)

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
