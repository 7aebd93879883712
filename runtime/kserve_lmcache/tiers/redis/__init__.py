"""Stores that speak Redis: a node, a cluster, sentinels, TLS."""
