"""The manifests' three pods of Redis and a sentinel each: a failover, and the doctor before it."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.packaging.manifests import documents
from tests.support.cluster import Cluster, Pod, Running, images
from tests.support.cluster.deployment import (
    PASSWORD,
    SECRETS,
    inner_pid,
    of_kind,
    preflight,
    start_redis,
)
from tests.support.stores import Store
from tests.support.waiting import until

pytestmark = pytest.mark.cluster

FAILOVER_SECONDS = 40


class Member:
    """A pod with its two containers."""

    def __init__(self, cluster: Cluster, pod: Pod) -> None:
        self.name = pod.name
        self._cluster, self._pod = cluster, pod
        self.start()

    def start(self) -> None:
        self.store: Store = start_redis(self._cluster, self._pod)
        self.sentinel: Running = self._cluster.start(self._pod, "sentinel", images.redis())

    def kill(self) -> None:
        self.store.kill()
        self.sentinel.process.signal(signal.SIGKILL)

    def replication(self) -> dict[str, Any]:
        with closing(self.store.client()) as client:
            return client.info("replication")

    def primary(self) -> str:
        """By its sentinel's word: the primary's name; empty while it cannot say."""
        with closing(redis.Redis(self._pod.address, 26379, decode_responses=True)) as client:
            try:
                host, _ = client.sentinel_get_master_addr_by_name("lmcache")
            except (redis.ConnectionError, TypeError):
                return ""
            return str(host)

    def others(self) -> tuple[int, int]:
        """Replicas and other sentinels that its sentinel knows."""
        with closing(redis.Redis(self._pod.address, 26379, decode_responses=True)) as client:
            found = client.sentinel_master("lmcache")
            return found["num-slaves"], found["num-other-sentinels"]


def test_a_failover_and_the_way_back(tmp_path: Path) -> None:
    with Cluster.up(tmp_path, documents("all with redis-sentinel"), SECRETS) as cluster:
        (workload,) = of_kind(cluster.documents, "StatefulSet")
        names = [f"lmcache-remote-{number}" for number in range(workload["spec"]["replicas"])]
        pods = [
            cluster.pod(name, workload["spec"]["template"]["spec"], f"{name}.lmcache-remote")
            for name in names
        ]
        members = [Member(cluster, pod) for pod in pods]
        until(lambda: all(member.others() == (2, 2) for member in members), FAILOVER_SECONDS)
        assert {member.primary() for member in members} == {"lmcache-remote-0.lmcache-remote"}
        assert members[0].replication()["connected_slaves"] == 2

        members[0].kill()
        alive = members[1:]
        until(lambda: _agreed(alive) not in ("", "lmcache-remote-0"), FAILOVER_SECONDS)
        primary = next(member for member in alive if member.name == _agreed(alive))
        until(lambda: primary.replication()["role"] == "master", FAILOVER_SECONDS)
        with closing(primary.store.client()) as client:
            client.set("kserve-lmcache:after", "the failover")

        members[0].start()
        until(lambda: members[0].replication().get("master_link_status") == "up", FAILOVER_SECONDS)
        assert members[0].replication()["master_host"] == f"{primary.name}.lmcache-remote"
        with closing(members[0].store.client()) as client:
            assert client.get("kserve-lmcache:after") == b"the failover"

        (service,) = of_kind(cluster.documents, "InferenceService")
        healthy = preflight(cluster, service, "llama-predictor-0")
        assert healthy.process.wait(60) == 0, healthy.process.output()
        assert "the primary of lmcache is lmcache-remote" in healthy.process.output()


def _agreed(members: list[Member]) -> str:
    found = {member.primary().partition(".")[0] for member in members}
    return found.pop() if len(found) == 1 else ""


def test_the_password_is_in_no_command_line(tmp_path: Path) -> None:
    with Cluster.up(tmp_path, documents("overlay sentinel"), SECRETS) as cluster:
        (workload,) = of_kind(cluster.documents, "StatefulSet")
        pod = cluster.pod("lmcache-remote-0", workload["spec"]["template"]["spec"])
        store = start_redis(cluster, pod)
        words = Path(f"/proc/{inner_pid(store)}/cmdline").read_text()
        assert "redis-server" in words
        assert PASSWORD not in words
