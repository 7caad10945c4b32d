"""``dinoneck viz``: figures of what a backbone sees and a head predicts; a report to open in a browser."""

from __future__ import annotations

from dinoneck.cli.viz_figures import gate, residuals, tokens
from dinoneck.cli.viz_report import report

viz = {"report": report, "tokens": tokens, "gate": gate, "residuals": residuals}
