"""``kserve-lmcache bench``: load on OpenAI-compatible endpoints, and what came of it.

Nothing here imports an engine: a laptop measures a remote endpoint.

What is measured, by the field's definitions:

TTFT
    seconds from sending a request to its first token (vLLM's ``vllm/benchmarks/serve.py``;
    https://docs.nvidia.com/nim/benchmarking/llm/latest/metrics.html, which leaves out an empty
    first response as we do).
E2E
    seconds from sending it to its last token (vLLM's ``e2el``; AIPerf's ``request_latency``).
TPOT
    ``(E2E - TTFT) / (output tokens - 1)``, for answers of two tokens or more (vLLM's ``tpot``;
    GenAI-Perf and AIPerf call the same figure ``inter_token_latency``).
ITL
    the seconds between one streamed piece of an answer and the next, of all answers together
    (vLLM's ``itl``; AIPerf's ``inter_chunk_latency``). A piece may hold more than one token.
Goodput
    completed requests a second that keep all the limits asked for (vLLM's ``request_goodput``;
    https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/perf_analyzer/genai-perf/docs/goodput.html).
Throughput
    completed requests, output tokens or all tokens, divided by the seconds from the first request
    to the end of the last one (vLLM's ``request_throughput`` and the like).
Hit ratio
    prompt tokens that came from a cache ÷ prompt tokens.

Percentiles are numpy's (linear interpolation), as vLLM's are.
"""
