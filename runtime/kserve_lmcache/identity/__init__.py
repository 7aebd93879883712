"""What a cache key is made of, so that the KV of one model is never loaded for another.

``engine``             the identity of a configured engine: the model's files, and the namespace
``namespace``          the part of every key that names the model, the numbers and the key scheme
``fingerprint``        the digest of a model's files, by three methods
``fingerprint_cache``  the digests of earlier starts
``arrival``            the place of a model's files, before anything slow starts
``files``              the files of a model that change its KV
``samples``            the bytes of the weights that are hashed
``safetensors_header`` the places of the tensors in a safetensors file

May import ``compat`` and the leaves.
"""
