"""The examples whose router follows the events of the replicas: the parts fit each other.

The fields of the InferencePool and of the endpoint picker's configuration are lists of ours, from
the public sources of the Gateway API inference extension (v1) and of llm-d's router (0.10). No test
runs either. Where the CRD is at hand, ``test_manifests.py`` checks the pool against it.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from tests.packaging.manifests import documents
from tests.packaging.network import Peer, flows
from tests.packaging.pods import LLM_SERVICE, Document, pods
from tests.packaging.rules.network import selects
from tests.support.cluster.controller import objects

SET = "inference pool"
PORT = {"number": {"type": "integer", "minimum": 1, "maximum": 65535}}


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1, "maxLength": 253}
POOL = closed(
    ["selector", "targetPorts", "endpointPickerRef"],
    selector=closed(
        ["matchLabels"],
        matchLabels={
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"type": "string", "maxLength": 63},
        },
    ),
    targetPorts={
        "type": "array",
        "minItems": 1,
        "maxItems": 8,
        "items": closed(["number"], **PORT),
    },
    appProtocol={"enum": ["http", "kubernetes.io/h2c"]},
    endpointPickerRef=closed(
        ["name", "port"],
        group={"type": "string"},
        kind=TEXT,
        name=TEXT,
        port=closed(["number"], **PORT),
        failureMode={"enum": ["FailOpen", "FailClose"]},
    ),
)
REFERENCE = closed(["pluginRef"], pluginRef=TEXT, weight={"type": "number"})
PICKER = closed(
    ["apiVersion", "kind", "plugins", "schedulingProfiles", "dataLayer"],
    apiVersion={"const": "llm-d.ai/v1alpha1"},
    kind={"const": "EndpointPickerConfig"},
    plugins={
        "type": "array",
        "items": closed(["type"], type=TEXT, name=TEXT, parameters={"type": "object"}),
    },
    schedulingProfiles={
        "type": "array",
        "items": closed(
            ["name", "plugins"], name=TEXT, plugins={"type": "array", "items": REFERENCE}
        ),
    },
    dataLayer=closed(
        ["sources"],
        sources={
            "type": "array",
            "items": closed(
                ["pluginRef", "extractors"],
                pluginRef=TEXT,
                extractors={"type": "array", "items": REFERENCE},
            ),
        },
    ),
)
MEDIA = {"gpu", "cpu", "storage", "remote"}  # those of our events, as the picker writes them


def one(found: list[Document], kind: str, name: str = "") -> Document:
    (document,) = (
        each
        for each in found
        if each["kind"] == kind and name in ("", each["metadata"].get("name"))
    )
    return document


def of_pool() -> tuple[dict[str, Any], list[str]]:
    """The picker's configuration, and the flags of the replicas."""
    applied = documents(SET)
    text = one(applied, "ConfigMap")["data"]["endpoint-picker-config.yaml"]
    return yaml.safe_load(text), one(applied, "InferenceService")["spec"]["predictor"]["model"][
        "args"
    ]


def of_llm_service() -> tuple[dict[str, Any], list[str]]:
    service = one(documents("llm precise-prefix"), LLM_SERVICE)
    (container,) = service["spec"]["template"]["containers"]
    (variable,) = container["env"]
    flags = variable["value"].replace("'", "").split()  # as a shell reads them
    return service["spec"]["router"]["scheduler"]["config"]["inline"], flags


EXAMPLES = {SET: of_pool, "llm precise-prefix": of_llm_service}
each_example = pytest.mark.parametrize("name", EXAMPLES)


def plugin(config: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = (each for each in config["plugins"] if each["type"] == kind)
    return found.get("parameters", {})


def flag(flags: list[str], name: str) -> str:
    (found,) = (each.partition("=")[2] for each in flags if each.startswith(f"--{name}="))
    return found


@each_example
def test_the_configuration_has_the_pickers_fields(name: str) -> None:
    config, _ = EXAMPLES[name]()
    jsonschema.validate(config, PICKER)
    named = {each.get("name", each["type"]) for each in config["plugins"]}
    used = {each["pluginRef"] for own in config["schedulingProfiles"] for each in own["plugins"]}
    for source in config["dataLayer"]["sources"]:
        used |= {source["pluginRef"], *(each["pluginRef"] for each in source["extractors"])}
    assert used <= named


@each_example
def test_the_picker_subscribes_to_what_the_replicas_publish(name: str) -> None:
    config, flags = EXAMPLES[name]()
    producer = plugin(config, "precise-prefix-cache-producer")
    published = json.loads(flag(flags, "kv-events-config"))
    assert published["enable_kv_cache_events"] is True
    events = producer["kvEventsConfig"]
    assert events["discoverPods"] is True
    ports = events["podDiscoveryConfig"]
    # The picker dials each replica, which therefore listens on every address.
    assert published["endpoint"] == f"tcp://*:{ports['socketPort']}"
    assert published["replay_endpoint"] == f"tcp://*:{ports['replaySocketPort']}"
    assert published["topic"].startswith(events["topicFilter"])
    assert producer["tokenProcessorConfig"]["blockSize"] == int(flag(flags, "block-size"))
    weights = {
        each["name"]: each["weight"] for each in producer["indexerConfig"]["kvCacheBackendConfigs"]
    }
    assert set(weights) == MEDIA
    assert min(weights, key=lambda medium: weights[medium]) == "remote"
    assert {"pluginRef": "precise-prefix-cache-producer"} in next(
        source["extractors"]
        for source in config["dataLayer"]["sources"]
        if source["pluginRef"] == "endpoint-notification-source"
    )
    scorer = plugin(config, "prefix-cache-scorer")
    assert scorer["prefixMatchInfoProducerName"] == "precise-prefix-cache-producer"


def test_the_topic_has_the_name_of_the_model() -> None:
    _, flags = of_llm_service()
    service = one(documents("llm precise-prefix"), LLM_SERVICE)
    topic = json.loads(flag(flags, "kv-events-config"))["topic"]
    assert topic == f"kv@pod@{service['spec']['model']['name']}"
    config, flags = of_pool()
    name = one(documents(SET), "InferenceService")["metadata"]["name"]
    assert json.loads(flag(flags, "kv-events-config"))["topic"] == f"kv@pod@{name}"
    assert plugin(config, "token-producer")["modelName"] == name


def test_the_pool_has_the_fields_of_its_kind() -> None:
    pool = one(documents(SET), "InferencePool")
    jsonschema.validate(pool["spec"], POOL)
    assert pool["spec"]["endpointPickerRef"]["failureMode"] == "FailOpen"


def test_the_pool_selects_the_pods_that_kserve_makes() -> None:
    applied = documents(SET)
    pool, made = one(applied, "InferencePool")["spec"], objects(applied, "models")
    deployment = one(made, "Deployment", "qwen-predictor")
    template = deployment["spec"]["template"]
    assert selects(pool["selector"], template["metadata"]["labels"])
    for document in applied:
        if document["kind"] == "Deployment":
            assert not selects(pool["selector"], next(pods(document)).labels)
    (server,) = (
        each for each in template["spec"]["containers"] if each["name"] == "kserve-container"
    )
    opened = [port["containerPort"] for port in server["ports"]]
    assert [port["number"] for port in pool["targetPorts"]] == opened


def test_the_pool_and_the_route_name_what_is_there() -> None:
    applied = documents(SET)
    made = [*applied, *objects(applied, "models")]
    picker = one(applied, "InferencePool")["spec"]["endpointPickerRef"]
    service = one(applied, picker["kind"], picker["name"])
    assert picker["port"]["number"] in [port["port"] for port in service["spec"]["ports"]]
    for rule in one(applied, "HTTPRoute")["spec"]["rules"]:
        for backend in rule["backendRefs"]:
            names = {
                each["metadata"].get("name") for each in made if each["kind"] == backend["kind"]
            }
            assert backend["name"] in names
    (container,) = one(applied, "Deployment")["spec"]["template"]["spec"]["containers"]
    pool = one(applied, "InferencePool")["metadata"]["name"]
    assert f"--pool-name={pool}" in container["args"]


def test_the_replicas_render_the_prompts() -> None:
    """vLLM refuses these routes without the flag."""
    config, flags = of_pool()
    url = urlsplit(plugin(config, "token-producer")["vllm"]["url"])
    made = objects(documents(SET), "models")
    (port,) = one(made, "Service", str(url.hostname))["spec"]["ports"]
    assert (url.scheme, url.path, url.port or 80) == ("http", "/openai", port["port"])
    assert "--enable-scale-out" in flags


def test_only_the_picker_reads_the_events() -> None:
    applied = documents(SET)
    policies = [each for each in applied if each["kind"] == "NetworkPolicy"]
    (runtime,) = (each for each in applied if each["metadata"]["name"] == "kserve-lmcache")
    replica = Peer("replica", next(pods(runtime)).labels)
    pod = next(pods(one(applied, "Deployment")))
    picker = Peer("picker", pod.labels, ports={"grpc": 9002, "metrics": 9090})
    gateway = Peer("gateway", {"app": "gateway"}, namespace="istio-system")
    prometheus = Peer("prometheus", {"app": "prometheus"}, namespace="monitoring")
    peers = [replica, picker, gateway, prometheus, Peer("neighbour", {"app": "web"})]
    wanted = [(port, "TCP") for port in (5557, 5558, 8080, 9002, 9090)]
    found = set(flows(policies, peers, wanted))
    assert {flow for flow in found if flow[1] == "replica" and flow[2] in (5557, 5558)} == {
        ("picker", "replica", 5557),
        ("picker", "replica", 5558),
    }
    assert ("picker", "replica", 8080) in found
    assert {flow for flow in found if flow[1] == "picker"} == {
        ("gateway", "picker", 9002),
        ("prometheus", "picker", 9090),
    }
