"""``python -m kserve_lmcache``."""

import sys

from kserve_lmcache.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
