"""From an image file to a tensor, and back: decoding, orientation, bands, sizes, views."""
