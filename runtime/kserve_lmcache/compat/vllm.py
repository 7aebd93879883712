"""Names of vLLM that are private, or that vLLM has moved between versions.

vLLM 0.24, 0.28 and 0.32 are supported. Importing this module does not import vLLM, which takes
seconds: a name of :data:`_MODULES` is imported when it is used first, and the functions import when
they are called. A version that has a name in another module needs one more module in the name's
entry, the newest version's first: the first module that exists is taken.

=====================================  ===========================================================
name                                   what differs between versions
=====================================  ===========================================================
``make_arg_parser``                    in ``vllm.entrypoints.launchers.cli_args`` since 0.29, in
                                       ``vllm.entrypoints.common.cli_args`` since 0.33
``validate_parsed_serve_args``         the same
``init_app_state``                     in ``vllm.entrypoints.launchers.api_server.app_state`` since
                                       0.29; the old module is left as a deprecated alias
``build_app``                          in ``vllm.entrypoints.launchers.app`` since 0.29; takes no
                                       ``model_config`` in 0.24
``ErrorResponse``, ``ErrorInfo``       in ``vllm.entrypoints.serve.engine.protocol`` since 0.29
``TokenizeChatRequest``, …             in ``vllm.entrypoints.serve.tokenize.protocol`` since 0.28
``AuthenticationMiddleware``           in ``vllm.entrypoints.serve.middleware.authenticate`` since
                                       0.29
``XRequestIdMiddleware``               in ``vllm.entrypoints.serve.middleware.x_request_id`` since
                                       0.29
``H11_MAX_HEADER_COUNT_DEFAULT``       in ``vllm.entrypoints.launchers.utils.constants`` since 0.29
``H11_MAX_INCOMPLETE_EVENT_SIZE_...``  the same
``exceptions``                         ``vllm.exceptions`` has more classes in 0.28 than in 0.24
``configure_logging``                  0.32 configures vLLM's logging by flags as well; 0.24 and
                                       0.28 by the environment alone, when vLLM is imported
``cpu_attention_kernel``               calls a private function, the same in 0.24, 0.28 and 0.32
``attention_choice``                   the same in 0.24, 0.28 and 0.32
``attention_backends``                 the same in 0.24, 0.28 and 0.32
``least_shared_memory``                since 0.28 vLLM refuses a queue that has no room
``engine_number``                      the same in 0.24, 0.28 and 0.32
=====================================  ===========================================================
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kserve_lmcache.compat.source import directory_of, execute

if TYPE_CHECKING:
    import torch
    from fastapi import FastAPI
    from vllm.config import VllmConfig

_MIB = 2**20
# Of a queue between vLLM's processes (MessageQueue).
_PART_OF_A_QUEUE, _PARTS_OF_A_QUEUE = 24 * _MIB, 10

_OLD_SERVER = "vllm.entrypoints.openai.api_server"
_OLD_MIDDLEWARE = "vllm.entrypoints.serve.utils.server_utils"
_CLI = (
    "vllm.entrypoints.common.cli_args",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.openai.cli_args",
)
_PROTOCOL = ("vllm.entrypoints.serve.engine.protocol", "vllm.entrypoints.openai.engine.protocol")
_TOKENIZE = (
    "vllm.entrypoints.serve.tokenize.protocol",
    "vllm.entrypoints.openai.engine.protocol",
)
_APP = ("vllm.entrypoints.launchers.app", _OLD_SERVER)
_CONSTANTS = (
    "vllm.entrypoints.launchers.utils.constants",
    "vllm.entrypoints.serve.utils.constants",
)
_TOOL_PARSERS = ("vllm.tool_parsers", "vllm.entrypoints.openai.tool_parsers")
# The modules that may have a name, the newest version's first.
_MODULES = {
    "make_arg_parser": _CLI,
    "validate_parsed_serve_args": _CLI,
    "init_app_state": ("vllm.entrypoints.launchers.api_server.app_state", _OLD_SERVER),
    "ErrorResponse": _PROTOCOL,
    "ErrorInfo": _PROTOCOL,
    "TokenizeChatRequest": _TOKENIZE,
    "TokenizeCompletionRequest": _TOKENIZE,
    "AuthenticationMiddleware": (
        "vllm.entrypoints.serve.middleware.authenticate",
        _OLD_MIDDLEWARE,
    ),
    "XRequestIdMiddleware": ("vllm.entrypoints.serve.middleware.x_request_id", _OLD_MIDDLEWARE),
    "H11_MAX_HEADER_COUNT_DEFAULT": _CONSTANTS,
    "H11_MAX_INCOMPLETE_EVENT_SIZE_DEFAULT": _CONSTANTS,
}
# In vLLM's own order: it loads the first that the hub has.
_WEIGHT_PATTERNS = ["*.safetensors", "*.bin", "*.pt"]


def __getattr__(name: str) -> Any:
    """Import a name of :data:`_MODULES`.

    Raises:
        AttributeError: the table has no such name.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_first_module(_MODULES[name]), name)
    return value


def _first_module(modules: tuple[str, ...]) -> Any:
    """The first module that the installed vLLM has.

    Raises:
        ModuleNotFoundError: there is none.
    """
    *newer, oldest = modules
    for module in newer:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            # A module that exists may lack one of its own dependencies, which is an error.
            if not f"{module}.".startswith(f"{error.name}."):
                raise
    return importlib.import_module(oldest)


def build_app(args: Namespace, tasks: Any, model_config: Any) -> FastAPI:
    """vLLM's OpenAI application, without its state.

    Args:
        args: the server's arguments.
        tasks: the tasks of the model, as the engine lists them.
        model_config: vLLM's configuration of the model; 0.24 does not take one.
    """
    build = _first_module(_APP).build_app
    takes_model_config = "model_config" in inspect.signature(build).parameters
    app: FastAPI = build(args, tasks, *((model_config,) if takes_model_config else ()))
    return app


def exceptions(*names: str) -> tuple[type[Exception], ...]:
    """The classes of ``vllm.exceptions`` with these names that the installed version has."""
    module = importlib.import_module("vllm.exceptions")
    return tuple(filter(None, (getattr(module, name, None) for name in names)))


def configure_logging(args: Namespace) -> None:
    """Let vLLM configure its logging now, if it would when the engine's configuration is created.

    What is configured after this call stays.

    Args:
        args: the server's arguments. vLLM keeps its configuration there for the engine's processes.
    """
    module = importlib.import_module("vllm.logger")
    if (configure := getattr(module, "configure_logging_from_args", None)) is not None:
        configure(args)


def refused_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """vLLM's reason for each of its variables whose value it cannot read.

    vLLM reads most variables late, in any of its processes. Kubernetes sets ``VLLM_PORT`` to an
    address when the namespace has a Service of the name ``vllm``.
    """
    import vllm.envs

    reasons = {}
    for name in sorted(set(environ) & set(vllm.envs.environment_variables)):
        try:
            vllm.envs.environment_variables[name]()
        except Exception as error:
            reasons[name] = str(error)
    return reasons


def connector_class(config: Any) -> Any:
    """The class of the KV connector that a ``KVTransferConfig`` names.

    Raises:
        Exception: vLLM knows no such connector, or cannot import it.
    """
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    return KVConnectorFactory.get_connector_class(config)


def exit_codes(client: Any) -> dict[str, int]:
    """The exit codes of the engine's processes that have ended, by name, as far as vLLM has them.

    Args:
        client: vLLM's client of the engine.
    """
    resources = getattr(getattr(client, "engine_core", None), "resources", None)
    processes = getattr(getattr(resources, "engine_manager", None), "processes", ())
    codes = {}
    for each in processes:
        with contextlib.suppress(ValueError):  # closed
            codes[each.name] = each.exitcode
    return {name: code for name, code in codes.items() if code is not None}


def loads_adapters() -> bool:
    """Whether vLLM may load adapters while it serves, by its routes and by its resolvers."""
    import vllm.envs

    return bool(vllm.envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING)


def skips_model_names() -> bool:
    """Whether vLLM takes any name for one of its model."""
    import vllm.envs

    return bool(vllm.envs.VLLM_SKIP_MODEL_NAME_VALIDATION)


def register_parsers(kind: str, plugin: str | None) -> list[str]:
    """The names of the parsers of a kind, after those of a plugin were registered.

    Args:
        kind: ``tool`` or ``reasoning``.
        plugin: the plugin's file, if there is one.
    """
    manager: Any
    if kind == "tool":
        manager = _first_module(_TOOL_PARSERS).ToolParserManager
        register = manager.import_tool_parser
    else:
        manager = importlib.import_module("vllm.reasoning").ReasoningParserManager
        register = manager.import_reasoning_parser
    if plugin:
        register(plugin)
    return list(manager.list_registered())


def knows_hash_algorithm(name: str) -> bool:
    """Whether vLLM has a hash of this name, and the package for it is installed."""
    # The module needs nothing of vLLM, whose import takes seconds.
    path = directory_of("vllm") / "utils" / "hashing.py"
    module = execute(path, "vllm.utils.hashing", lambda name: None)
    try:
        module.get_hash_fn_by_name(name)
    except (ValueError, ImportError):
        return False
    return True


def least_shared_memory(environ: Mapping[str, str]) -> int:
    """The bytes that must be free in ``/dev/shm`` for the queues between vLLM's processes.

    The largest queue is that of a worker's answers. Memory is taken when a queue is written, so
    that versions that do not look at the room start with little of it.

    Args:
        environ: may set the size of a part of the other queue.
    """
    folder = directory_of("vllm") / "distributed" / "device_communicators"
    if "def check_shm_free_space(" not in (folder / "shm_broadcast.py").read_text():
        return 32 * _MIB
    chosen = environ.get("VLLM_MQ_MAX_CHUNK_BYTES_MB", "")
    part = max(_PART_OF_A_QUEUE, int(chosen) * _MIB if chosen.isdecimal() else 0)
    return part * _PARTS_OF_A_QUEUE + _MIB  # the last for what tells who has read what


def cpu_attention_kernel(
    dtype: torch.dtype, block_size: int, head_size: int, cache_dtype: str
) -> str:
    """The attention kernel that vLLM's CPU backend chooses for the processor.

    Raises:
        NotImplementedError: vLLM has no kernel for these arguments.
    """
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    return str(_get_attn_isa(dtype, block_size, head_size, cache_dtype))


def release() -> str:
    """The release of vLLM. A build between two releases has its commit in it.

    The package's metadata has another name for a CPU.
    """
    import vllm

    return str(vllm.__version__)


def engine_number(config: VllmConfig) -> int:
    """The number of the engine among the data-parallel engines of a server, from 0 on.

    ``data_parallel_rank`` is 0 in every engine of a model that is no mixture of experts.
    """
    return int(config.parallel_config.data_parallel_index)


def attention_choice(config: VllmConfig) -> tuple[str, str]:
    """The attention backend and the layout of the KV cache that the user asks for; else empty."""
    from vllm import envs

    wanted = getattr(config.attention_config, "backend", None)
    return getattr(wanted, "name", ""), envs.VLLM_KV_CACHE_LAYOUT or ""


def attention_backends(config: VllmConfig) -> list[str]:
    """The names of the attention backends that the layers of a worker have, each once."""
    layers = config.compilation_config.static_forward_context.values()
    return sorted(
        {
            layer.get_attn_backend().get_name()
            for layer in layers
            if hasattr(layer, "get_attn_backend")
        }
    )


def download_model(config: VllmConfig) -> Path:
    """Download the model's weights from the hub, as the engine does when it starts.

    Returns:
        The directory of the snapshot. Its name is the commit.
    """
    from vllm.model_executor.model_loader.weight_utils import download_weights_from_hf

    model, load = config.model_config, config.load_config
    return Path(
        download_weights_from_hf(model.model, load.download_dir, _WEIGHT_PATTERNS, model.revision)
    )
