"""The remote tier: a store that replicas share, and all that keeps it from making serving worse."""
