"""``make test-cluster``: what the documents say of a cluster, on a real one."""
