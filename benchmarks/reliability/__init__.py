"""What head files withstand: every part is measured here, and ``docs/reliability.md`` is written from the results."""
