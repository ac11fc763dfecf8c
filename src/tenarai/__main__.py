"""`python -m tenarai` is `tenarai`."""

import sys

try:
    from tenarai.cli import main
except KeyboardInterrupt:  # before main is there to take it
    sys.exit(130)

sys.exit(main())
