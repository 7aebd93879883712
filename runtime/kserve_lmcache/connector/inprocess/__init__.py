"""The cache in the engine's own processes: vLLM's LMCache connector and LMCache's cache engine."""
