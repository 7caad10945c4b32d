"""Files for a checkout of the D-FINE or DEIM repository. See README.md."""
