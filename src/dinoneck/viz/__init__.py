"""Pictures, figures and reports: where a prediction comes from.

Functions called ``..._panels`` return a Pillow image and need no plotting library; those called ``..._figure`` return
a matplotlib figure. ``report.py`` fills ``report.html.j2``, one HTML file.
"""

from dinoneck.lazy import attach, homes

_HOMES = homes(
    __name__,
    drawing=["residual_figure"],
    map_files=["write_maps"],
    overlay=["overlay_panel"],
    panels=["boxes_panel", "gate_panels", "heat", "pca_panels", "prediction_panels", "pyramid_panels"],
    pca=["PCABasis", "pca_rgb"],
    report=["html_report"],
    scales=["ReportEntry"],
    similarity=["similarity_page"],
)

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
