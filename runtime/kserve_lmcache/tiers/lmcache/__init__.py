"""Stores that LMCache has a connector to: ``lm://``, ``fs://``, ``s3://``, Mooncake and others."""
