"""Dense NDVI from one photo: a patch head learns vegetation cover from five aligned bands."""
