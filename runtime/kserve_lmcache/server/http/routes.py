"""The table of routes: the application that each comes from, and whether it is on by default.

vLLM's routes are below the prefix of the OpenAI routes, KServe's routes at the root. The table has
the routes of every supported version of vLLM. A route that is not in the table, such as one of a
newer version, is not served.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.routing import BaseRoute

ON, OFF = "on", "off"
KSERVE, VLLM, OURS = "KServe", "vLLM", "ours"
OURS_BELOW = "ours, below the prefix"


@dataclass(frozen=True)
class Row:
    """Routes with the same decision.

    Attributes:
        routes: each as ``METHOD /path``, the path as the application registers it.
        source: the application that registers them.
        when: :data:`ON`, :data:`OFF` (``about`` says why), or the group of the setting
            ``enable_routes`` that turns them on.
        about: a description for the documentation.
        also_v1: whether they are served below ``/v1`` as well, for clients whose base URL ends so.
    """

    routes: tuple[str, ...]
    source: str
    when: str
    about: str
    also_v1: bool = False


TABLE = (
    Row(
        ("POST /v1/chat/completions", "POST /v1/completions"),
        VLLM,
        ON,
        "generation, streamed or whole; answered through KServe's data plane",
    ),
    Row(
        ("POST /v1/embeddings", "POST /v1/rerank"),
        VLLM,
        ON,
        "of pooling models; answered through KServe's data plane",
    ),
    Row(("GET /v1/models",), VLLM, ON, "the model, its aliases and adapters; also `/v1/models/ID`"),
    Row(
        (
            "POST /v1/responses",
            "GET /v1/responses/{response_id}",
            "POST /v1/responses/{response_id}/cancel",
        ),
        VLLM,
        ON,
        "stored answers with `VLLM_ENABLE_RESPONSES_API_STORE=1`",
    ),
    Row(("POST /v1/messages", "POST /v1/messages/count_tokens"), VLLM, ON, "Anthropic's protocol"),
    Row(("POST /v1/chat/completions/batch",), VLLM, ON, "several conversations in one request"),
    Row(("POST /tokenize", "POST /detokenize"), VLLM, ON, "", also_v1=True),
    Row(("GET /tokenizer_info",), VLLM, ON, "with `--enable-tokenizer-info-endpoint`"),
    Row(
        (
            "POST /v1/chat/completions/render",
            "POST /v1/completions/render",
            "POST /v1/chat/completions/derender",
            "POST /v1/completions/derender",
            "POST /v1/messages/render",
            "POST /v1/responses/render",
            "POST /inference/v1/generate",
        ),
        VLLM,
        ON,
        "tokens in, tokens out; 403 without `--enable-scale-out` where vLLM has this flag",
    ),
    Row(
        ("POST /inference/v1/abort_requests",),
        VLLM,
        OFF,
        "ends any client's request; a client ends its own by closing the connection",
    ),
    Row(("POST /generative_scoring",), VLLM, ON, "of generative models", also_v1=True),
    Row(
        ("POST /v1/systemone",),
        VLLM,
        ON,
        "structured decisions, of the models that vLLM has them for",
    ),
    Row(
        ("POST /score", "POST /v1/score", "POST /rerank", "POST /v2/rerank", "POST /v2/embed"),
        VLLM,
        ON,
        "of pooling models",
    ),
    Row(("POST /pooling", "POST /classify"), VLLM, ON, "of pooling models", also_v1=True),
    Row(
        ("POST /v1/audio/transcriptions", "POST /v1/audio/translations", "WS /v1/realtime"),
        VLLM,
        ON,
        "of audio models",
    ),
    Row(("POST /invocations", "GET /ping", "POST /ping"), VLLM, ON, "Amazon SageMaker's protocol"),
    Row(("GET /health", "GET /version"), VLLM, ON, ""),
    Row(("GET /openapi.json",), VLLM, ON, "of the routes below the prefix"),
    Row(
        ("GET /docs", "GET /docs/oauth2-redirect", "GET /redoc"),
        VLLM,
        "docs",
        "pages that load scripts from a public network",
    ),
    Row(
        ("POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter"),
        VLLM,
        "lora",
        "reads whatever path it is told",
    ),
    Row(
        ("POST /adapters", "DELETE /adapters/{adapter_name}"),
        VLLM,
        "lora",
        "the same in SageMaker's protocol",
    ),
    Row(("POST /start_profile", "POST /stop_profile"), VLLM, "profile", "with `--profiler-config`"),
    Row(
        ("POST /reset_prefix_cache", "POST /reset_mm_cache", "POST /reset_encoder_cache"),
        VLLM,
        "reset-cache",
        "",
    ),
    Row(
        ("POST /sleep", "POST /wake_up", "GET /is_sleeping", "POST /release_kv_cache_memory"),
        VLLM,
        "sleep",
        "",
    ),
    Row(("POST /collective_rpc",), VLLM, "collective-rpc", "calls any method of the workers"),
    Row(("GET /server_info",), VLLM, "server-info", "shows the whole configuration"),
    Row(
        ("GET /kv_event_sources",),
        VLLM,
        "server-info",
        "shows the addresses at which vLLM publishes the events of its KV cache",
    ),
    Row(
        (
            "POST /pause",
            "POST /resume",
            "GET /is_paused",
            "POST /abort_requests",
            "POST /init_weight_transfer_engine",
            "POST /shutdown_weight_transfer_engine",
            "POST /start_weight_update",
            "POST /start_draft_weight_update",
            "POST /update_weights",
            "POST /finish_weight_update",
            "POST /update_weight_version",
            "GET /weight_info",
            "POST /weight_checker",
            "GET /get_world_size",
        ),
        VLLM,
        "weights",
        "changed weights are not the model's whose cache entries there are: with `--offload=off`",
    ),
    Row(
        ("POST /scale_elastic_ep", "POST /is_scaling_elastic_ep"),
        VLLM,
        "elastic",
        "with elastic expert parallelism",
    ),
    Row(
        ("POST /fault_tolerance/apply", "GET /fault_tolerance/status"),
        VLLM,
        "fault-tolerance",
        "with `--enable-fault-tolerance`",
    ),
    Row(("GET /load",), VLLM, OFF, "it would not count what KServe's data plane answers"),
    Row(("GET /metrics", "MOUNT /metrics"), VLLM, OFF, "`/metrics` at the root has all of it"),
    Row(("GET /",), KSERVE, ON, "like `/v2/health/live`"),
    Row(("GET /metrics",), KSERVE, ON, "of every process: KServe's, vLLM's, LMCache's and ours"),
    Row(("GET /offload",), OURS, ON, "the state of offloading, as JSON and as a page"),
    Row(
        ("GET /v1/cache", "DELETE /v1/cache", "POST /v1/cache/prefetch", "POST /v1/cache/pin"),
        OURS_BELOW,
        "cache",
        "shows, deletes, loads and keeps what is cached",
    ),
    Row(("GET /v1/models", "GET /v1/models/{model_name}"), KSERVE, ON, "KServe's v1 protocol"),
    Row(
        (
            "POST /v1/models/{model_name}:predict",
            "POST /v1/models/{model_name}:explain",
            "POST /v2/models/{model_name}/infer",
            "POST /v2/models/{model_name}/versions/{model_version}/infer",
        ),
        KSERVE,
        ON,
        "501 with where to go: a model of text has no tensors",
    ),
    Row(("GET /v2/health/live", "GET /v2/health/ready"), KSERVE, ON, "what Kubernetes' probes ask"),
    Row(
        (
            "GET /v2",
            "GET /v2/models",
            "GET /v2/models/{model_name}",
            "GET /v2/models/{model_name}/versions/{model_version}",
            "GET /v2/models/{model_name}/ready",
            "GET /v2/models/{model_name}/versions/{model_version}/ready",
        ),
        KSERVE,
        ON,
        "KServe's v2 protocol",
    ),
    Row(
        (
            "POST /v2/repository/models/{model_name}/load",
            "POST /v2/repository/models/{model_name}/unload",
        ),
        KSERVE,
        "repository",
        "unloading stops the engine for good",
    ),
    Row(
        ("GET /openapi.json", "GET /docs", "GET /docs/oauth2-redirect"),
        KSERVE,
        ON,
        "the pages with `--enable_docs_url=true`",
    ),
)

# Groups whose routes vLLM registers only when an environment variable is set.
_LORA, _DEVELOPMENT = {"lora"}, {"reset-cache", "sleep", "collective-rpc", "server-info", "weights"}


def known(source: str) -> dict[str, Row]:
    """The row of each route of an application."""
    return {route: row for row in TABLE if row.source == source for route in row.routes}


def names(route: BaseRoute) -> Iterator[str]:
    """The names of a route in the table, one for each of its methods."""
    path: Any = getattr(route, "path", "")
    methods = getattr(route, "methods", None)
    if methods is None:
        kind = "WS" if "WebSocket" in type(route).__name__ else "MOUNT"
        yield f"{kind} {path}"
        return
    for method in sorted(methods - {"HEAD"}):
        yield f"{method} {path}"


def is_wanted(route: BaseRoute, source: str, groups: Iterable[str]) -> bool:
    """Whether a route of an application is served."""
    rows = known(source)
    wanted = {ON, *groups}
    return all(name in rows and rows[name].when in wanted for name in names(route))


def switches(groups: Iterable[str]) -> dict[str, str]:
    """The environment variables that make vLLM register the routes of these groups."""
    asked = set(groups)
    found = {}
    if asked & _LORA:
        found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if asked & _DEVELOPMENT:
        found["VLLM_SERVER_DEV_MODE"] = "1"
    return found
