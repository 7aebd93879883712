"""Real servers on free ports of this machine, waited for by their own protocol."""

from tests.support.stores.binaries import servers
from tests.support.stores.cluster import Cluster, redis_cluster
from tests.support.stores.others import LmStore, lm_server, lm_store, silent_server
from tests.support.stores.sentinels import Watched, sentinel, watched_by_sentinels
from tests.support.stores.single import redis_process, redis_server, valkey_server
from tests.support.stores.store import Store, node
from tests.support.stores.variants import VARIANTS

__all__ = [
    "VARIANTS",
    "Cluster",
    "LmStore",
    "Store",
    "Watched",
    "lm_server",
    "lm_store",
    "node",
    "redis_cluster",
    "redis_process",
    "redis_server",
    "sentinel",
    "servers",
    "silent_server",
    "valkey_server",
    "watched_by_sentinels",
]
