"""The net: small data sets of every form that is read, each with its right values."""
