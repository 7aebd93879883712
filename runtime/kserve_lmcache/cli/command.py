"""The command ``kserve-lmcache``.

Each process of the engine imports this module before anything of vLLM: multiprocessing imports the
main module of the process that starts another one. It leaves out modules called ``__main__``.
"""

from __future__ import annotations

import sys

from kserve_lmcache.compat import importing

importing.begin()


def main() -> int:
    """Run the command of this process's arguments; returns the exit code."""
    from kserve_lmcache.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
