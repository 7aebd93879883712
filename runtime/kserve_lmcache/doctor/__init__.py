"""``kserve-lmcache doctor``: checks of a machine, a model and a store, with evidence and fixes.

Imported by ``cli`` alone. May import ``server`` and the folders below it.
"""
