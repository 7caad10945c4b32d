"""Pictures: where a prediction comes from.

Every figure has a file of its own, named after what it shows; they share ``sheet.py`` (layout, captions, colour bars,
the only matplotlib) and ``arrays.py``. ``panels.py`` needs Pillow alone. ``report/`` is the HTML page.
"""

from dinoneck.lazy import attach, homes

_HOMES = {
    **homes(
        __name__,
        clouds=["points_figure"],
        detections=["boxes_figure"],
        fusion_weights=["fusion_figure"],
        gate_maps=["gate_figure"],
        heat_maps=["heat_figure"],
        panels=["heat", "prediction_panels"],
        pca=["PCABasis", "pca_rgb"],
        pca_pictures=["pca_figure"],
        pyramids=["pyramid_figure"],
        residuals=["residual_figure"],
    ),
    "ReportEntry": "dinoneck.viz.report.photos",
    "html_report": "dinoneck.viz.report.page",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
