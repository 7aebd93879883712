"""Keeps the code that vLLM, torch and Triton compile for later starts of a server.

``archive`` is the file format, ``key`` tells apart what must not be mixed, and ``keeper`` gives a
server a directory to compile into and saves what it holds.
"""

from kserve_lmcache.engine.compiled_code.keeper import Keeper

__all__ = ["Keeper"]
