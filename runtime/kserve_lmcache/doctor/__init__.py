"""``kserve-lmcache doctor``: checks of a machine, a model and a store, with evidence and fixes.

``run.CHECKS`` is the table of all checks, ``store.CHECKS`` that of the remote store. Imported by
``cli`` alone. May import ``server`` and the folders below it.
"""
