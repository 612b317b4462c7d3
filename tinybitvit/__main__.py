"""`python -m tinybitvit` is the command `tinybitvit`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
