"""``python -m jaxmarl_tad`` is ``tad``."""

import sys

from jaxmarl_tad.cli import main

if __name__ == "__main__":
    sys.exit(main())
