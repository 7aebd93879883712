"""vLLM's own scheduler and the product's connectors around a model that is a formula.

A real model cannot tell a test that one block of its KV cache was wrong. This one writes into
the paged cache what is a function of the prefix, and looks at all that it reads: what it should
not have read spoils what it writes and says from there on, as attention would.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lmcache.integration.vllm import utils as lmcache_utils
from lmcache.v1.cache_engine import LMCacheEngineBuilder
from vllm.config import KVTransferConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.distributed.kv_transfer import kv_transfer_state
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorBase_V1, KVConnectorRole
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin

from kserve_lmcache.config.engine_file import MODE, STATS_ARE_RECEIVED
from kserve_lmcache.config.settings import IN_PROCESS, MULTIPROCESS
from kserve_lmcache.connector.scheduler import SchedulerPart
from kserve_lmcache.connector.worker import WorkerPart
from kserve_lmcache.engine.connectors import CONNECTOR, CONNECTOR_MODULE
from kserve_lmcache.identity.namespace import NAMESPACE
from kserve_lmcache.metrics.snapshots import Snapshots, merge
from tests.support.cache_server import CacheServer
from tests.support.ports import free_port

LAYERS, HEADS, HEAD_SIZE = 2, 2, 8
BLOCK, CHUNK = 16, 32
VOCABULARY = 250
LAYER_NAMES = [f"model.layers.{number}.self_attn" for number in range(LAYERS)]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HEADS * HEAD_SIZE,
    "intermediate_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": HEAD_SIZE,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
}
LMCACHE = {
    "CHUNK_SIZE": str(CHUNK),
    "MAX_LOCAL_CPU_SIZE": "0.05",
    "PRE_CACHING_HASH_ALGORITHM": "sha256_cbor",
    "TRACK_USAGE": "false",
}
_WRONG = -1.0


def states(tokens: Iterable[int]) -> list[float]:
    """What the cache must hold at each position; exact in float32."""
    state, found = 1, []
    for token in tokens:
        state = (state * 31 + token + 7) % 65521
        found.append(float(state))
    return found


def continuation(prompt: list[int], count: int) -> list[int]:
    """The ``count`` tokens that the model says after ``prompt``."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(states(tokens)[-1]) % VOCABULARY)
    return tokens[len(prompt) :]


@contextmanager
def simulated(
    directory: Path,
    blocks: int = 64,
    lmcache: Mapping[str, str] | None = None,
    server: CacheServer | None = None,
    extra_config: Mapping[str, Any] | None = None,
    peer: type[KVConnectorBase_V1] | None = None,
    **arguments: Any,
) -> Iterator[SimulatedEngine]:
    """An engine with an LMCache of its own.

    Args:
        directory: for the model's configuration.
        blocks: of vLLM's cache.
        lmcache: more of LMCache's variables, without their prefix.
        server: in place of the LMCache in the engine's process.
        extra_config: more of the connector's.
        peer: a connector before ours, both below vLLM's ``MultiConnector``, which this server
            refuses.
        **arguments: vLLM's.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LMCACHE_")]:
            patch.delenv(name)
        for name, value in {**LMCACHE, **(lmcache or {})}.items():
            patch.setenv(f"LMCACHE_{name}", value)
        patch.setattr(lmcache_utils, "_config_instance", None)
        mode = IN_PROCESS
        if server is not None:
            mode = MULTIPROCESS
            patch.setenv("LMCACHE_CONFIG_FILE", str(server.file))
        config = engine_config(directory, {MODE: mode, **(extra_config or {})}, **arguments)
        if peer is not None:
            config.kv_transfer_config = _beside(config.kv_transfer_config, peer)
        with set_current_vllm_config(config):
            parallel_state.init_distributed_environment(
                1, 0, f"tcp://127.0.0.1:{free_port()}", 0, backend="gloo"
            )
            parallel_state.initialize_model_parallel(1, 1)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for tensors this small, the others would only be waited for
        engine = SimulatedEngine(config, blocks)
        try:
            yield engine
        finally:
            engine.shutdown()
            torch.set_num_threads(threads)
            LMCacheEngineBuilder.destroy(lmcache_utils.ENGINE_NAME)
            parallel_state.destroy_model_parallel()
            parallel_state.destroy_distributed_environment()


def engine_config(directory: Path, extra_config: Mapping[str, Any], **arguments: Any) -> VllmConfig:
    """vLLM's configuration with the product's connector.

    Args:
        directory: gets the model's configuration.
        extra_config: more of the connector's.
        **arguments: vLLM's.
    """
    (directory / "config.json").write_text(json.dumps(CONFIG))
    defaults: dict[str, Any] = {
        "max_model_len": 1024,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 4,
        "async_scheduling": False,
    }
    wanted = {**defaults, **arguments}
    config = EngineArgs(
        model=str(directory),
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype="float32",
        block_size=BLOCK,
        enforce_eager=True,
        kv_transfer_config=KVTransferConfig(
            kv_connector=CONNECTOR,
            kv_connector_module_path=CONNECTOR_MODULE,
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config={
                NAMESPACE: "simulated",
                STATS_ARE_RECEIVED: True,
                **extra_config,
            },
        ),
        **wanted,
    ).create_engine_config()
    # vLLM switches it off on a CPU.
    config.scheduler_config.async_scheduling = wanted["async_scheduling"]
    return config


def _beside(ours: KVTransferConfig, peer: type[KVConnectorBase_V1]) -> KVTransferConfig:
    children = [
        {"kv_connector": peer.__name__, "kv_connector_module_path": peer.__module__},
        {
            "kv_connector": ours.kv_connector,
            "kv_connector_module_path": ours.kv_connector_module_path,
            "kv_connector_extra_config": ours.kv_connector_extra_config,
        },
    ]
    return KVTransferConfig(
        kv_connector="MultiConnector",
        kv_role="kv_both",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={
            "connectors": [{**child, "kv_role": "kv_both"} for child in children]
        },
    )


class Worker(KVConnectorModelRunnerMixin):  # type: ignore[misc]
    """A model runner that calls the connector as vLLM's does, around the formula.

    Attributes:
        wrong: requests of which something wrong was read from the cache.
    """

    def __init__(self, config: VllmConfig, blocks: int, connector: KVConnectorBase_V1) -> None:
        self.config = config
        shape = (blocks, HEADS, BLOCK, 2 * HEAD_SIZE)
        self.cache = {name: torch.full(shape, _WRONG) for name in LAYER_NAMES}
        self.connector = connector
        connector.register_kv_caches(self.cache)
        self.wrong: set[str] = set()
        self._tables: dict[str, list[int]] = {}
        self._tokens: dict[str, list[int]] = {}
        self._prompts: dict[str, int] = {}

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        kv_transfer_state._KV_CONNECTOR_AGENT = self.connector
        try:
            with set_current_vllm_config(self.config):
                return self._execute(step)
        finally:
            kv_transfer_state._KV_CONNECTOR_AGENT = None

    def _execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        self.connector.handle_preemptions(step.kv_connector_metadata)
        computed, known = self._update(step)
        if not computed:
            return self.kv_connector_no_forward(step, self.config)
        sampled = {}
        with (
            set_forward_context({"any": object()}, self.config),
            self.maybe_get_kv_connector_output(step) as output,
        ):
            for layer in LAYER_NAMES:
                if self.connector.has_connector_metadata():
                    self.connector.wait_for_layer_load(layer)
                    self.connector.save_kv_layer(layer, self.cache[layer], None)
            # All layers write before they read, so that whoever computes a block comes first.
            for name in sorted(computed, key=computed.__getitem__):
                end = computed[name] + step.num_scheduled_tokens[name]
                token = self._compute(name, computed[name], end)
                sampled[name] = [token] if end == known[name] else []
                if sampled[name]:
                    self._tokens[name][end:] = sampled[name]
        return ModelRunnerOutput(
            req_ids=list(sampled),
            req_id_to_index={name: index for index, name in enumerate(sampled)},
            sampled_token_ids=list(sampled.values()),
            kv_connector_output=output,
        )

    def _update(self, step: SchedulerOutput) -> tuple[dict[str, int], dict[str, int]]:
        """Of each request in the step, how much is computed and how much there is."""
        for name in step.finished_req_ids:
            self._tables.pop(name, None)
        computed, known = {}, {}
        for new in step.scheduled_new_reqs:
            self._tables[new.req_id] = list(new.block_ids[0])
            self._tokens[new.req_id] = list(new.prompt_token_ids)
            computed[new.req_id] = new.num_computed_tokens
            known[new.req_id] = self._prompts[new.req_id] = len(new.prompt_token_ids)
        cached = step.scheduled_cached_reqs
        for place, name in enumerate(cached.req_ids):
            blocks = list((cached.new_block_ids[place] or ([],))[0])
            if name in cached.resumed_req_ids:
                self._tables[name] = blocks
            else:
                self._tables[name] += blocks
            computed[name] = cached.num_computed_tokens[place]
            known[name] = self._prompts[name] + cached.num_output_tokens[place]
        return computed, known

    def _compute(self, name: str, start: int, end: int) -> int:
        """Write what belongs at ``start`` to ``end``, and give the token that follows."""
        slots = torch.tensor(
            [self._tables[name][place // BLOCK] * BLOCK + place % BLOCK for place in range(end)]
        )
        values = torch.tensor(states(self._tokens[name][:end]))
        for number, layer in enumerate(self.cache.values()):
            read = layer[slots[:start] // BLOCK, :, slots[:start] % BLOCK]
            if not bool((read == (values[:start] + number)[:, None, None]).all()):
                self.wrong.add(name)
                values[start:] = _WRONG
        for number, layer in enumerate(self.cache.values()):
            layer[slots[start:] // BLOCK, :, slots[start:] % BLOCK] = (values[start:] + number)[
                :, None, None
            ]
        return int(values[-1]) % VOCABULARY


def kv_cache_config(blocks: int) -> KVCacheConfig:
    """vLLM's cache of the formula."""
    spec = FullAttentionSpec(
        block_size=BLOCK, num_kv_heads=HEADS, head_size=HEAD_SIZE, dtype=torch.float32
    )
    return KVCacheConfig(blocks, [], [KVCacheGroupSpec(LAYER_NAMES, spec)])


def scheduler(config: VllmConfig, kv_cache: KVCacheConfig) -> Scheduler:
    """vLLM's scheduler, with its part of the connector that the configuration names."""
    config.cache_config.num_gpu_blocks = kv_cache.num_blocks
    init_none_hash(sha256_cbor)
    kind = AsyncScheduler if config.scheduler_config.async_scheduling else Scheduler
    return kind(config, kv_cache, StructuredOutputManager(config), BLOCK, log_stats=True)


def request(
    name: str,
    prompt: list[int],
    count: int = 4,
    extra_args: dict[str, Any] | None = None,
    **options: Any,
) -> Request:
    """A request that nobody knows of, with the fields of vLLM's own as ``extra_args``."""
    parameters = SamplingParams(
        max_tokens=count, temperature=0, ignore_eos=True, extra_args=extra_args
    )
    hasher = get_request_block_hasher(BLOCK, sha256_cbor)
    return Request(name, prompt, parameters, None, block_hasher=hasher, **options)


class SimulatedEngine:
    """A scheduler and a worker in one process, one step at a time.

    Steps overlap where the configuration has asynchronous scheduling, as on a GPU.

    Attributes:
        said: the tokens of each request so far.
        finished: requests that were not aborted.
        hits: tokens that were found outside of vLLM's own cache.
        failed: blocks of those that were not loaded.
        outcome: what the worker's connector told the scheduler's last.
        snapshots: the newest that the server would have received.
    """

    def __init__(self, config: VllmConfig, blocks: int = 64) -> None:
        kv_cache = kv_cache_config(blocks)
        self._depth = config.max_concurrent_batches
        with set_current_vllm_config(config):
            connector_class = KVConnectorFactory.get_connector_class(config.kv_transfer_config)
            connector = connector_class(config, KVConnectorRole.WORKER, kv_cache)
            self.worker = Worker(config, blocks, connector)
            self.scheduler = scheduler(config, kv_cache)
        report = connector.get_handshake_metadata()
        self.scheduler.connector.set_xfer_handshake_metadata_pp_aware({(0, 0): report})
        self.said: dict[str, list[int]] = {}
        self.finished: set[str] = set()
        self.hits = self.failed = 0
        self.outcome = KVConnectorOutput()
        self.snapshots: Snapshots = {}
        self._running: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()

    def add(self, name: str, prompt: list[int], count: int = 4, **options: Any) -> None:
        self.said[name] = []
        self.scheduler.add_request(self.request(name, prompt, count, **options))

    def request(self, name: str, prompt: list[int], count: int = 4, **options: Any) -> Request:
        """A request that nobody knows of."""
        return request(name, prompt, count, **options)

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def is_busy(self) -> bool:
        return bool(self._running) or self.scheduler.has_requests()

    def step(self, while_it_runs: Callable[[], None] = lambda: None) -> None:
        """One step; ``while_it_runs`` is called before its outcome is known to the scheduler."""
        if self.scheduler.has_requests():
            step = self.scheduler.schedule()
            self._running.append((step, self.worker.execute(step)))
            if len(self._running) < self._depth and self.scheduler.has_requests():
                return
        if not self._running:
            return
        while_it_runs()
        step, ran = self._running.popleft()
        self.outcome = ran.kv_connector_output or KVConnectorOutput()
        self.failed += len(self.outcome.invalid_block_ids)
        for outputs in self.scheduler.update_from_output(step, ran).values():
            for output in outputs.outputs:
                self.said[output.request_id] += output.new_token_ids
                if output.finish_reason is not None:
                    self.finished.add(output.request_id)
            stats = outputs.scheduler_stats
            if stats is not None and stats.connector_prefix_cache_stats is not None:
                self.hits += stats.connector_prefix_cache_stats.hits
            if stats is not None and stats.kv_connector_stats is not None:
                merge(self.snapshots, stats.kv_connector_stats)

    def run(self, steps: int = 500) -> None:
        """Step until all requests are finished.

        Raises:
            AssertionError: they are not, after that many steps.
        """
        while self.is_busy():
            steps -= 1
            assert steps, f"still unfinished: {sorted(self.scheduler.requests)}"
            self.step()

    def ask(self, name: str, prompt: list[int], count: int = 4, **options: Any) -> list[int]:
        """The answer to a request that runs alone."""
        self.add(name, prompt, count, **options)
        self.run()
        return self.said[name]

    @property
    def parts(self) -> tuple[SchedulerPart, WorkerPart]:
        """Of the two connectors."""
        return self.scheduler.connector.scheduler, self.worker.connector.worker

    @property
    def adapters(self) -> tuple[Any, Any]:
        """LMCache's own, of the scheduler and of the worker."""
        scheduler, worker = self.parts
        return scheduler._cache._adapter, worker._cache._adapter

    def forget_errors(self) -> None:
        """Begin to count and to log exceptions of LMCache anew."""
        for part in self.parts:
            part.containment._counts.clear()
            part.containment._logged.clear()

    def errors(self) -> dict[str, int]:
        """Exceptions of LMCache by call, of both parts."""
        counts: Counter[str] = Counter()
        for part in self.parts:
            counts.update(part.containment.counts())
        return dict(counts)

    def forget_local(self) -> None:
        """Empty vLLM's own prefix cache, so that LMCache's is asked."""
        assert self.scheduler.reset_prefix_cache()

    def shutdown(self) -> None:
        self.worker.connector.shutdown()
        self.scheduler.shutdown()
