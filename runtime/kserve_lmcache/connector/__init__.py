"""The KV connector that vLLM loads in its scheduler's process and in every worker."""

from kserve_lmcache.connector.connector import KServeLMCacheConnector

__all__ = ["KServeLMCacheConnector"]
