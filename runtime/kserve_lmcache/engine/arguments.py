"""Resolves KServe's flags into arguments of vLLM's engine."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext

from kserve_lmcache.config.resources import cpu_cores, memory_limit
from kserve_lmcache.engine import memory
from kserve_lmcache.errors import KServeLMCacheError, UsageError

logger = logging.getLogger(__name__)

_DEFAULT_NAME = "model"  # KServe's
_TLS_PORT, _PORT = 8443, 8080  # KServe's
_PLACES = "VLLM_CPU_OMP_THREADS_BIND"
_ANY_CORE = "nobind"  # to vLLM
_THREADS = "OMP_NUM_THREADS"
_HALVES = ("bfloat16", "float16")
_SLOW_DATA_TYPE = (
    "This CPU has no AVX-512, and computes prompts several times more slowly in %s than in "
    "float32: --dtype=float32 is faster, and takes twice the memory"
)


def device() -> str:
    """The type of the device on which vLLM computes, such as ``cuda`` or ``cpu``."""
    return str(current_platform.device_type)


def require_device() -> None:
    """Refuse a machine on which vLLM cannot compute. vLLM's own flags need the device as well.

    Raises:
        KServeLMCacheError: vLLM finds no device, as a CUDA build of torch without a GPU.
    """
    if device():
        return
    raise KServeLMCacheError(
        f"vLLM finds no device: torch {torch.__version__} computes on GPUs, and none is visible. "
        "Give the container a GPU (docker run --gpus all; in Kubernetes resources.limits "
        "nvidia.com/gpu), or use the image for CPUs (docker build --build-arg DEVICE=cpu)."
    )


def compiles(args: Namespace) -> bool:
    """Whether the engine compiles code at its start; on a GPU Triton always does."""
    mode = getattr(args.compilation_config, "mode", None)
    level = getattr(args, "optimization_level", None)
    off = args.enforce_eager or mode == 0 or (level == 0 and mode is None)
    return device() != "cpu" or not off


def resolve_engine_arguments(args: Namespace, environ: MutableMapping[str, str]) -> None:
    """Complete ``args`` and ``environ`` in place. Values that the user set stay.

    Raises:
        UsageError: there is no model to load.
    """
    args.model = _model(args)
    if args.model_revision is not None:
        args.revision = args.model_revision
    # The model has the names of both flags, KServe's and vLLM's.
    names = [name for name in (args.model_name, *(args.served_model_name or ())) if name]
    args.served_model_name = list(dict.fromkeys(names)) or [_DEFAULT_NAME]
    args.model_name = args.served_model_name[0]
    args.http_port = args.port or args.http_port
    if args.http_port is None:
        args.http_port = _TLS_PORT if args.ssl_certfile and args.ssl_keyfile else _PORT
    if args.disable_log_requests:
        args.enable_log_requests = False
    if args.tensor_parallel_size is None:
        args.tensor_parallel_size = max(1, torch.cuda.device_count()) if device() == "cuda" else 1
    if device() == "cpu":
        # On a CPU, vLLM fails to load the results of its ahead-of-time compilation (torch 2.13: "no
        # attribute 'finalize_loading'"), and compiles again at every start. Its older cache works.
        environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
        _place_threads(args, environ)
        memory.size_kv_cache(args, memory_limit(), memory.needs_of(args, "cpu", environ), environ)
    if args.gpu_memory_utilization is None:
        args.gpu_memory_utilization = AsyncEngineArgs.gpu_memory_utilization


def create_engine_config(args: Namespace) -> VllmConfig:
    """vLLM's configuration of the engine.

    Raises:
        KServeLMCacheError: vLLM refuses the arguments or the model's configuration.
    """
    try:
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config(
            usage_context=UsageContext.OPENAI_API_SERVER
        )
    except Exception as error:
        logger.debug("vLLM's own error", exc_info=True)
        raise KServeLMCacheError(
            f"vLLM refuses the engine's arguments: {_reason(error)}. "
            "Correct the flag, or serve another model."
        ) from error
    _take_no_missing_embeddings(config, args)
    _tell_slow_data_type(config)
    return config


def _tell_slow_data_type(config: VllmConfig) -> None:
    """Tell that this CPU computes prompts in 16 bits more slowly than in 32.

    ``docs/benchmarks.md`` has the figures.
    """
    name = str(config.model_config.dtype).removeprefix("torch.")
    if device() == "cpu" and name in _HALVES and torch.backends.cpu.get_cpu_capability() == "AVX2":
        logger.warning(_SLOW_DATA_TYPE, name)


def _take_no_missing_embeddings(config: VllmConfig, args: Namespace) -> None:
    """Refuse pictures' embeddings as without a connector.

    To an engine with ``kv_role=kv_both``, vLLM 0.32 is the second half of a disaggregated service:
    it takes ``image_embeds`` without ``--enable-mm-embeds``, and even parts that have no tensor,
    whose KV another engine is to send. Here no one sends it. Earlier versions have no such field.
    """
    pictures: Any = config.model_config.multimodal_config
    if getattr(pictures, "allow_missing_mm_embeddings", False):
        pictures.allow_missing_mm_embeddings = False
        pictures.enable_mm_embeds = bool(args.enable_mm_embeds)


def _reason(error: Exception) -> str:
    """What vLLM says, without pydantic's text around it, which repeats the values."""
    mistakes: Any = getattr(error, "errors", None)
    if not callable(mistakes):
        return str(error).rstrip(".")
    said = (str(each["msg"]).removeprefix("Value error, ") for each in mistakes())
    return "; ".join(said).rstrip(".")


def _model(args: Namespace) -> str:
    named = args.model_id or args.model_tag or args.model
    if named:
        return str(named)
    if not Path(args.model_dir).is_dir():
        raise UsageError(
            f"there is no model: --model_id is not given and --model_dir={args.model_dir} "
            "is not a directory. Give --model_id, or a storageUri in the InferenceService."
        )
    return str(args.model_dir)


def _place_threads(args: Namespace, environ: MutableMapping[str, str]) -> None:
    """Give vLLM's workers as many threads as the container may run, and cores that are its own.

    vLLM's automatic binding reserves cores. On a machine with two cores it leaves one thread, which
    halves the speed of prefill. It binds to cores of every machine, too, in the same order in every
    container.
    """
    if environ.get(_PLACES):
        return
    cores = cpu_cores()
    workers = args.tensor_parallel_size * args.pipeline_parallel_size
    if cores.bound and not environ.get(_THREADS):
        bound = cores.bound
        shares = [
            bound[worker::workers] or (bound[worker % len(bound)],) for worker in range(workers)
        ]
        environ[_PLACES] = "|".join(",".join(map(str, share)) for share in shares)
        logger.info("Computing on CPU cores %s (%s)", environ[_PLACES], cores.source)
        return
    environ[_PLACES] = _ANY_CORE
    if environ.get(_THREADS):
        logger.info("Computing by %s threads on any core (%s)", environ[_THREADS], _THREADS)
        return
    environ[_THREADS] = str(max(1, cores.count // workers))
    each = f" in each of {workers} workers" if workers > 1 else ""
    logger.info("Computing by %s threads%s on any core (%s)", environ[_THREADS], each, cores.source)
