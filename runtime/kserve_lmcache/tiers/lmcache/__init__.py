"""Stores that LMCache has a connector for: ``lm://``, ``fs://``, ``s3://``, Mooncake and others."""
