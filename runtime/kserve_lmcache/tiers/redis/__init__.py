"""Redis and Valkey stores: one server, a cluster, or the primary that sentinels name."""
