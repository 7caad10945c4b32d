"""Dense NDVI from one image: a patch head learns vegetation cover from five aligned bands."""
