"""Biomass (or any other measured value) from images."""
