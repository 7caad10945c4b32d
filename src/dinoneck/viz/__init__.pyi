"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.viz.overlay import overlay_panel as overlay_panel
from dinoneck.viz.overlay import write_maps as write_maps
from dinoneck.viz.panels import heat as heat
from dinoneck.viz.panels import pca_panels as pca_panels
from dinoneck.viz.pca import PCABasis as PCABasis
from dinoneck.viz.pca import pca_rgb as pca_rgb
from dinoneck.viz.pictures import boxes_panel as boxes_panel
from dinoneck.viz.report import ReportEntry as ReportEntry
from dinoneck.viz.report import html_report as html_report
