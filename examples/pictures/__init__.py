"""The pictures of README and docs: held-out field images with predictions, tokens as colours."""
