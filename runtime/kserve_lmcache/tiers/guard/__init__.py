"""The guard of a tier: every fault of a store ends in a cache miss, not in an error or a delay.

May import ``config``, ``metrics`` and nothing else of the tiers.
"""
