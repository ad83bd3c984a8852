"""Entry point of ``python -m trajmatch``: the command line."""

import sys

from trajmatch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
