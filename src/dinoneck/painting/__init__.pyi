"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.painting.head import fit_strokes as fit_strokes
from dinoneck.painting.page import Photo as Photo
from dinoneck.painting.page import painting_page as painting_page
from dinoneck.painting.photos import PhotoTokens as PhotoTokens
from dinoneck.painting.strokes import PaintedImage as PaintedImage
from dinoneck.painting.strokes import Stroke as Stroke
from dinoneck.painting.strokes import Strokes as Strokes
