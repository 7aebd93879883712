"""``kserve-lmcache bench``: compares endpoints, with and without a cached prompt.

The sweep over prompt lengths, the ratios with confidence intervals and the report are this
folder's own. Load, arrivals, datasets and traces are those of ``vllm bench serve``. Only
:mod:`kserve_lmcache.bench.load` imports vLLM, when a run needs it: the sweep needs no engine.
This folder may import ``config`` and everything below it.

TTFT is the time from sending a request to its first token, E2E to its last token, ITL the time
between two streamed pieces of an answer, and TPOT ``(E2E - TTFT) / (output tokens - 1)``. Goodput
counts the completed requests a second that keep all limits. Percentiles are interpolated linearly.
"""
