"""Labels by painting: a page in which strokes on one photo give the maps of all others.

``page.py`` fills ``painting.html.j2``, one HTML file that needs no network. ``strokes.py`` reads
what the page saves, and ``head.py`` fits the same head on the whole tokens.
"""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    head=["fit_strokes"],
    page=["Photo", "painting_page"],
    photos=["PhotoTokens"],
    strokes=["PaintedImage", "Stroke", "Strokes"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
