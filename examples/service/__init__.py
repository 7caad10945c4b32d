"""A small HTTP service around a head: photos in, values in natural units out, nothing unbounded."""
