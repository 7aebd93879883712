"""A cache server: a process that keeps chunks in shared memory, beside the engine.

It is LMCache's storage manager (:mod:`kserve_lmcache.compat.lmcache.storage`) with the tiers of
this package below, and answers the engine's processes on a Unix socket::

    engine's scheduler ──lookups──┐
                                  ├─ socket ─▶ service ─▶ storage manager ─▶ tiers
    engine's workers ─reservations┘                              │
           └────────── copy to and from ────────────▶ shared memory

- :mod:`.messages` and :mod:`.rpc` are the calls;
- :mod:`.announcement` says where a server is;
- :mod:`.service` answers the calls, and :mod:`.tier_adapter` is what the storage manager asks;
- :mod:`.process` is the process; :mod:`.supervisor` starts it, and starts it again.
"""
