"""KServe predictor runtime: vLLM with KV-cache offloading (LMCache) already configured."""

__version__ = "0.1.0"
