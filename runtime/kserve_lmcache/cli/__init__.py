"""Command line: parsing only; what the flags mean is resolved elsewhere."""
