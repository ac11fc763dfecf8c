"""`python -m tenarai` is `tenarai`."""

import sys

from tenarai.cli import main

sys.exit(main())
