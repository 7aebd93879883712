"""The engine: vLLM's engine behind KServe's model class, and the plan to offload its KV cache.

``plan`` decides whether and how the KV cache is offloaded, ``arguments`` resolves KServe's flags
for vLLM, ``model`` is the class that KServe serves, ``client`` is vLLM's engine client, and
``process`` prepares the engine's processes. May import ``connector`` and the folders below it.
"""
