"""Events of our tiers, among vLLM's own KV-cache events.

Each tier's own index tells what comes and goes (:mod:`kserve_lmcache.tiers.changes`). A thread of
the worker sends the changes to the scheduler's process (:mod:`.worker`). A thread there keeps the
ledger of what all workers hold (:mod:`.ledger`), knows by which of vLLM's hashes a chunk is
announced (:mod:`.chunks`), and hands the events to the publisher (:mod:`.publisher`). No step of
the engine takes part, so an idle engine announces as well.
"""
