"""Head and worker of a service on two nodes: a real Ray cluster by the manifests' own commands.

vLLM refuses Ray on a CPU ("current platform cpu does not support ray"), so a stand-in takes the
server's place on the head: it does what vLLM's executor does up to the placement of its workers,
and says where they are and what environment they have.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.packaging.manifests import documents
from tests.support.cluster import Cluster, images, kserve
from tests.support.cluster.deployment import RUNTIME_KINDS, claim_with, of_kind
from tests.support.server import MODEL

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

SECONDS = 120
MEMORY = "4Gi"

# Places one worker on each node of the cluster, as vLLM's executor does with a placement group.
STAND_IN = """#!/usr/bin/env python3
import json, os, signal, sys
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Strategy

ray.init(address="auto", log_to_driver=False)
group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
ray.get(group.ready(), timeout=100)

@ray.remote(num_cpus=1)
def look():
    names = ("PYTHONHASHSEED", "LMCACHE_TRACK_USAGE", "VLLM_HOST_IP", "HOME")
    return {
        "address": ray.util.get_node_ip_address(),
        "model": sorted(os.listdir("/mnt/models"))[:1],
        **{name: os.environ.get(name) for name in names},
    }

places = [Strategy(group, placement_group_bundle_index=index) for index in range(2)]
found = [look.options(scheduling_strategy=place).remote() for place in places]
print("PLACED " + json.dumps({"args": sys.argv[1:], "workers": ray.get(found)}), flush=True)
signal.pause()
"""


def test_two_nodes_form_one_cluster(tmp_path: Path) -> None:
    applied = documents("example multinode")
    (service,) = of_kind(applied, "InferenceService")
    runtime = kserve.choose(of_kind(applied, *RUNTIME_KINDS), service)
    stand_in = tmp_path / "entrypoint.sh"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    ours = images.ours()
    commands = [stand_in, *(path for path in ours.commands if path.name != stand_in.name)]
    image = dataclasses.replace(ours, commands=commands)
    claims = {"models": claim_with(tmp_path / "models", service, MODEL)}
    with Cluster.up(tmp_path, applied, {}, None, claims) as cluster:
        name = f"{kserve.head_service(service)}.models.svc"
        head = cluster.pod("head", kserve.predictor(runtime, service), name)
        worker = cluster.pod("worker", kserve.worker(runtime, service))
        # The worker first: it has to wait for the head.
        joined = cluster.start(worker, "worker-container", image, MEMORY)
        joined.process.wait_until(lambda: "Waiting for Ray's head" in joined.process.output(), 30)
        server = cluster.start(head, "kserve-container", image, MEMORY)
        server.process.wait_until(lambda: "PLACED" in server.process.output(), SECONDS)
        (line,) = (x for x in server.process.output().splitlines() if x.startswith("PLACED "))
        placed = json.loads(line.removeprefix("PLACED "))
        assert placed["args"] == [
            "--distributed-executor-backend=ray",
            "--tensor-parallel-size=8",
            "--pipeline-parallel-size=2",
            "--model_name=llama-405b",
        ]
        assert {each["address"] for each in placed["workers"]} == {head.address, worker.address}
        for each in placed["workers"]:
            assert each["PYTHONHASHSEED"] == "0"  # else replicas share nothing
            assert each["LMCACHE_TRACK_USAGE"] == "false"
            assert each["HOME"] == "/tmp"  # noqa: S108
            assert each["VLLM_HOST_IP"] == each["address"]
            assert each["model"]
        # A worker whose head is gone ends, so that its pod starts again and joins the next head.
        server.process.stop()
        assert joined.process.wait(120) != 0
