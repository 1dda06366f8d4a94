"""``python -m clipdistill``: the command line, and what torchrun starts."""

import sys

from clipdistill.cli import main

sys.exit(main())
