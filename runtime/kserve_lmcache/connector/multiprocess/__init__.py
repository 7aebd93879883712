"""The cache in a cache server beside the engine (:mod:`kserve_lmcache.cache_server`).

The scheduler's process names chunks and looks them up; workers copy whole blocks to and from the
server's shared memory. A call has a deadline, and nobody waits for a server that does not answer.
"""
