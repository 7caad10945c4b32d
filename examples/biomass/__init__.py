"""Biomass (or any other measured value) from photos."""
