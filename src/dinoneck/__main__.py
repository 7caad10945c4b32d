"""``python -m dinoneck`` is the ``dinoneck`` command."""

import sys

from dinoneck.cli.main import main

sys.exit(main())
