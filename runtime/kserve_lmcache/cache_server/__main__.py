"""``python -m kserve_lmcache.cache_server FILE SIZE``: a cache server.

The engine's server starts it (:mod:`.supervisor`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kserve_lmcache import logs, redaction
from kserve_lmcache.cache_server.process import Settings, run
from kserve_lmcache.config import engine_file


def main() -> int:
    """Serve until a signal comes."""
    settings = Settings(Path(sys.argv[1]), int(sys.argv[2]))
    logs.configure(os.environ)
    redaction.redact_logs(engine_file.secrets_in(settings.file))
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
