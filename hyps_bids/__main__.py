"""``python -m hyps_bids``."""

import sys

from hyps_bids.cli import main

sys.exit(main())
