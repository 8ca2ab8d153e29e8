"""``python -m hyps_bids.tools``."""

import sys

from hyps_bids.tools import main

if __name__ == "__main__":
    sys.exit(main())
