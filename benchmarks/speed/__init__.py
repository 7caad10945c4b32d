"""Every neck and head next to the usual formulations of the same work, with the same weights, in one run."""
