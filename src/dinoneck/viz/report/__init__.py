"""The report: one HTML file. ``page.py`` puts it together from the other files here."""
