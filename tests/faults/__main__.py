"""``python -m tests.faults``; see :mod:`tests.faults.report`."""

from tests.faults.report import main

if __name__ == "__main__":
    main()
