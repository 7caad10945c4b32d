"""Labels by painting: a page in which strokes on one photo give the maps of all others.

``page.py`` fills ``painting.html.j2``, one HTML file that needs no network.
"""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    page=["Photo", "painting_page"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
