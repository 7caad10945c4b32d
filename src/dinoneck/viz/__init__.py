"""Pictures, figures and reports: where a prediction comes from.

Functions called ``..._panel`` and ``..._panels`` return a Pillow image and need no plotting
library. ``report.py`` fills ``report.html.j2``, one HTML file.
"""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    overlay=["overlay_panel", "write_maps"],
    panels=["heat", "pca_panels"],
    pca=["PCABasis", "pca_rgb"],
    pictures=["boxes_panel"],
    report=["ReportEntry", "html_report"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
