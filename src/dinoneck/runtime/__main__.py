"""``python -m dinoneck.runtime``: print what exported files need beside dinoneck, for ``pip install -r``."""

import sys
from pathlib import Path

sys.stdout.write(Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8"))
