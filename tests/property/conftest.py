"""The same examples in every run: none is drawn by chance, kept between runs, or stopped by a clock."""

from hypothesis import settings

settings.register_profile("house", deadline=None, max_examples=100, derandomize=True, database=None)
settings.load_profile("house")
