"""Runnable examples over the public API."""
