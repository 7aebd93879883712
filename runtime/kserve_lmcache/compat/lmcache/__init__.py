"""Private or moved names of LMCache, one module a reason to change. Imports nothing itself."""
