"""The remote tier and the disk tier, behind LMCache's local CPU tier.

``guard`` keeps the deadlines, the breaker, the bounded writer and the checksum. ``redis``,
``disk`` and ``lmcache`` each implement one kind of store. ``plugin`` connects a tier to LMCache's
engine. May import ``config`` and the folders below it.
"""
