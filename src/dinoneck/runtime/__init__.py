"""Exported files run without torch: images in, values, maps and boxes out."""
