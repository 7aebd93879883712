"""``python -m kserve_lmcache``. The processes of the engine import this module before any other."""

import sys

from kserve_lmcache import importing

importing.begin()

from kserve_lmcache.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
