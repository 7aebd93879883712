"""The tiers behind the local CPU tier: a guard around stores, and the stores.

``guard`` holds deadlines, the breaker, the bounded writer and the codec with its checksum;
``redis``, ``disk`` and ``lmcache`` hold one kind of store each; ``plugin`` connects a tier to
LMCache's engine.
May import ``config`` and the folders below it.
"""
