"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.viz.clouds import points_figure as points_figure
from dinoneck.viz.detections import boxes_figure as boxes_figure
from dinoneck.viz.entries import ReportEntry as ReportEntry
from dinoneck.viz.images import fusion_figure as fusion_figure
from dinoneck.viz.images import gate_figure as gate_figure
from dinoneck.viz.images import pca_figure as pca_figure
from dinoneck.viz.images import pyramid_figure as pyramid_figure
from dinoneck.viz.panels import heat as heat
from dinoneck.viz.panels import prediction_panels as prediction_panels
from dinoneck.viz.pca import PCABasis as PCABasis
from dinoneck.viz.pca import pca_rgb as pca_rgb
from dinoneck.viz.report import html_report as html_report
from dinoneck.viz.residuals import residual_figure as residual_figure
