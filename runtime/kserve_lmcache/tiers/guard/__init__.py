"""The guard of a tier: every fault of a store ends in a cache miss, never in an error or a wait."""
