"""With this directory on the path, ``kserve-lmcache serve`` is a stand-in that has no engine.

It stands where a test is about what starts, measures and ends servers: an engine's start takes a
minute. What it "computes" takes time by the prompt's length, and is kept in itself and, with
offloading on, in the Redis of ``LMCACHE_REMOTE_URL``, from which others load it.
"""

import os
import sys

if sys.orig_argv[1:4] == ["-m", "kserve_lmcache", "serve"]:
    from tests.support.openai_server import serve_replica

    serve_replica(sys.orig_argv[4:], os.environ.get("LMCACHE_REMOTE_URL", ""))
    os._exit(0)
