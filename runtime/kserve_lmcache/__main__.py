"""``python -m kserve_lmcache``."""

import sys

from kserve_lmcache.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
