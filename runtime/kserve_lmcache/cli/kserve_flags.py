"""Every flag of KServe's servers, and what it does here.

A flag is honoured, or it is refused with what to use instead. The reference page and the check of
the arguments are made from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Decision:
    """What a flag does here.

    Attributes:
        note: how a flag that is honoured differs from KServe's own server; empty when it does not.
        instead: what to use in the place of a flag that is refused; empty for one that is honoured.
        allowed: the values that are not refused, of a flag that is honoured in part.
    """

    note: str = ""
    instead: str = ""
    allowed: tuple[object, ...] = ()


_HONOURED = Decision()
_OF_A_TRANSFORMER = Decision(
    instead="Leave it out: a transformer calls a predictor, and this server is one."
)
_OF_THE_OTHER_BACKEND = Decision(
    instead="Leave it out: only the backend huggingface of KServe's own server has it."
)

# By the attribute of the flag, in the order of KServe's parsers.
KSERVE_FLAGS: Final[Mapping[str, Decision]] = {
    "http_port": Decision("8080, or 8443 with certificates, when it is not given. Also `--port`."),
    "grpc_port": Decision("With `--enable_grpc=true`."),
    "workers": Decision(
        instead="Leave it out: the engine cannot be shared by processes. Use more replicas.",
        allowed=(1,),
    ),
    "max_threads": Decision("Threads of gRPC."),
    "max_asyncio_workers": _HONOURED,
    "enable_grpc": Decision("Off by default: the gRPC port has no API keys and no encryption."),
    "enable_docs_url": _HONOURED,
    "enable_latency_logging": Decision("Off by default."),
    "configure_logging": _HONOURED,
    "log_config_file": Decision("Configures this server's process, not vLLM's."),
    "access_log_format": _HONOURED,
    "event_loop": _HONOURED,
    "timeout_keep_alive": _HONOURED,
    "model_name": Decision("The first name; the names of `--served-model-name` work beside it."),
    "predictor_host": _OF_A_TRANSFORMER,
    "protocol": _OF_A_TRANSFORMER,
    "predictor_protocol": _OF_A_TRANSFORMER,
    "predictor_use_ssl": _OF_A_TRANSFORMER,
    "predictor_request_timeout_seconds": _OF_A_TRANSFORMER,
    "grpc_max_send_message_length": Decision("With `--enable_grpc=true`."),
    "grpc_max_receive_message_length": Decision("With `--enable_grpc=true`."),
    "predictor_request_retries": _OF_A_TRANSFORMER,
    "enable_predictor_health_check": _OF_A_TRANSFORMER,
    "ssl_certfile": Decision("Needs `--ssl_keyfile`. A changed file is read again."),
    "ssl_keyfile": Decision("Needs `--ssl_certfile`. A changed file is read again."),
    "model_dir": _HONOURED,
    "model_id": _HONOURED,
    "model_revision": Decision("The same as `--revision`."),
    "max_length": Decision("The same as `--max-model-len`."),
    "backend": Decision(
        instead="Use KServe's own runtime: the backend huggingface has no KV cache to offload.",
        allowed=("auto", "vllm"),
    ),
    "disable_log_requests": _HONOURED,
    "task": Decision(
        instead="Leave it out: vLLM finds the task from the model. `--runner` and `--convert` "
        "choose it."
    ),
    "tensor_input_names": _OF_THE_OTHER_BACKEND,
    "disable_lower_case": _OF_THE_OTHER_BACKEND,
    "disable_special_tokens": _OF_THE_OTHER_BACKEND,
    "return_token_type_ids": _OF_THE_OTHER_BACKEND,
    "return_offsets_mapping": _OF_THE_OTHER_BACKEND,
    "return_probabilities": _OF_THE_OTHER_BACKEND,
    "return_raw_logits": _OF_THE_OTHER_BACKEND,
}
REFUSED = {
    name: decision.instead.replace("`", "")
    for name, decision in KSERVE_FLAGS.items()
    if decision.instead and not decision.allowed
}
