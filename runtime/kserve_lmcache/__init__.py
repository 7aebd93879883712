"""KServe predictor runtime: vLLM with KV-cache offloading (LMCache) already configured."""

from kserve_lmcache.compat import moved_modules

__version__ = "0.1.0"

moved_modules.install()
