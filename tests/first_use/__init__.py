"""What a newcomer tries first, and mistakes that people make: ``python -m tests.first_use`` runs all of it."""
