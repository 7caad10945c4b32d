"""Every neck and head beside the usual formulations of the same work, with the same weights, in one run."""
