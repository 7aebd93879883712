"""The copy path between vLLM's paged KV cache and LMCache's memory, the same on every device.

vLLM keeps the KV cache of a layer as a list of blocks. What a block holds is the attention
backend's affair: rows of keys and values in some order, a latent vector a token, packed FP8 with
scales, tiles of a processor's matrix unit. This package copies whole blocks as opaque bytes, so
that nothing depends on what a byte means.

- :mod:`.pages` reads from vLLM's configuration how large a block is;
- :mod:`.layout` finds the bytes of the blocks in the tensor of a layer;
- :mod:`.paged_cache` copies blocks of all layers within the memory of one device;
- :mod:`.transfer` copies them to and from the memory of the host, by streams of the device.
"""
