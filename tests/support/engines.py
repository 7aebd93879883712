"""vLLM engines as the server makes them, one after another in one process, without HTTP.

A server takes a minute to start, most of it for importing vLLM in three processes. Here scheduler
and worker live in one process, and an engine takes seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.server import ROOT, engine_environment

LOADED = "kserve-lmcache:loaded"  # tokens that came from the local tier
SECONDS = 60.0  # of one engine on a busy machine, beside what importing vLLM takes


@dataclass
class Round:
    """Prompts that run together.

    Attributes:
        prompts: as token ids.
        generate: tokens for each.
        after: number of an earlier round, whose prompts and answers stand before these.
        score: ask for the logprobs of the prompts too.
        lose_from: LMCache loses, while it loads, all of its chunks from this one on.
    """

    prompts: Sequence[Sequence[int]]
    generate: int = 8
    after: int | None = None
    score: bool = False
    lose_from: int | None = None


@dataclass
class Job:
    """An engine, and what it is asked.

    Attributes:
        model: its directory; no tokenizer is needed.
        flags: of the server.
        variables: environment variables, LMCache's among them.
        rounds: one after another.
    """

    model: str
    flags: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    rounds: Sequence[Round] = ()


@dataclass
class Answer:
    """To one prompt.

    Attributes:
        tokens: that were generated.
        logprobs: of each of them.
        prompt_logprobs: of the prompt's, from the second on; empty unless they were asked for.
        cached: tokens of the prompt that came from a cache.
    """

    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]
    cached: int


@dataclass
class Outcome:
    """Of one job.

    Attributes:
        architecture: vLLM's class of the model.
        namespace: of the engine's keys.
        rounds: answers by round.
        counters: by how much each of vLLM's grew, and :data:`LOADED`, by round.
        error: what ended the job instead; empty when nothing did.
    """

    architecture: str = ""
    namespace: str = ""
    rounds: list[list[Answer]] = field(default_factory=list)
    counters: list[dict[str, int]] = field(default_factory=list)
    error: str = ""


def run(jobs: Sequence[Job], directory: Path, python: str | Path = sys.executable) -> list[Outcome]:
    """Run the jobs in a process of their own; its log is ``engines.log`` in ``directory``."""
    asked, answered, log = (directory / name for name in ("jobs.json", "out.json", "engines.log"))
    asked.write_text(json.dumps([asdict(job) for job in jobs]))
    # One process, whose working directory is where the package of the tests is found.
    environ = engine_environment(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        PYTHONHASHSEED="0",
        LMCACHE_TRACK_USAGE="false",
        DO_NOT_TRACK="1",
        VLLM_NO_USAGE_STATS="1",
    )
    command = [str(python), "-m", __name__, str(asked), str(answered)]
    with log.open("wb") as output:
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=120 + SECONDS * len(jobs),
            check=False,
        )
    if ended.returncode:
        tail = log.read_text(errors="replace").splitlines()[-60:]
        raise AssertionError("\n".join([f"engines ended with {ended.returncode}", *tail]))
    return [
        Outcome(
            each["architecture"],
            each["namespace"],
            [[Answer(**answer) for answer in answers] for answers in each["rounds"]],
            each["counters"],
            each["error"],
        )
        for each in json.loads(answered.read_text())
    ]


def _outcome(job: dict[str, Any]) -> Outcome:
    import os
    import traceback

    from lmcache.integration.vllm import utils
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.v1.engine.llm_engine import LLMEngine

    from kserve_lmcache.cache_server.supervisor import Supervisor
    from kserve_lmcache.cli.arguments import parse_arguments
    from kserve_lmcache.engine.arguments import resolve_engine_arguments
    from kserve_lmcache.engine.plan import plan_offload, resolve_configuration

    before, outcome, engine, cache_server = dict(os.environ), Outcome(), None, None
    utils._config_instance = None  # LMCache reads its configuration once in a process
    os.environ.update(job["variables"])
    fixed = ("--skip-tokenizer-init", "--enforce-eager", "--dtype=float32")
    try:
        args = parse_arguments([f"--model_id={job['model']}", *fixed, *job["flags"]])
        resolve_engine_arguments(args, os.environ)
        offload, config = plan_offload(args, resolve_configuration(args, os.environ), os.environ)
        outcome.architecture = config.model_config.architecture
        if offload.identity is not None:
            outcome.namespace = offload.identity.namespace
        if offload.engine_file is not None and offload.cache_server_bytes:
            cache_server = Supervisor(offload.engine_file, offload.cache_server_bytes)
        with _hidden("llvmlite.binding.ffi"):
            engine = LLMEngine.from_vllm_config(config)
        prompts: list[list[list[int]]] = []
        for number, asked in enumerate(job["rounds"]):
            prompts.append(_prompts(asked, prompts, outcome.rounds))
            counted = _counters()
            outcome.rounds.append(_answers(engine, prompts[-1], str(number), asked))
            outcome.counters.append(
                {name: count - counted.get(name, 0) for name, count in _counters().items()}
            )
    except Exception:
        outcome.error = traceback.format_exc()
    finally:
        if engine is not None:
            engine.engine_core.shutdown()
        if cache_server is not None:
            cache_server.stop()
        cleanup_dist_env_and_memory()
        os.environ.clear()
        os.environ.update(before)
    return outcome


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Without a module in ``sys.modules``.

    vLLM 0.32 looks there for Triton kernels when it makes a worker on a CPU, and fails at an object
    of llvmlite. LMCache imports llvmlite. A server's worker imports LMCache after it was made.
    """
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module


def _prompts(
    asked: dict[str, Any], prompts: Sequence[list[list[int]]], answers: Sequence[list[Answer]]
) -> list[list[int]]:
    if (after := asked["after"]) is None:
        own: list[list[int]] = asked["prompts"]
        return own
    return [
        [*prompt, *answer.tokens, *own]
        for prompt, answer, own in zip(
            prompts[after], answers[after], asked["prompts"], strict=True
        )
    ]


def _answers(
    engine: Any, prompts: list[list[int]], name: str, asked: dict[str, Any]
) -> list[Answer]:
    import pytest
    from vllm import SamplingParams

    from tests.support.lmcache_faults import lose_chunks, lose_chunks_of_a_cache_server

    parameters = SamplingParams(
        temperature=0,
        max_tokens=asked["generate"],
        logprobs=0,
        prompt_logprobs=0 if asked["score"] else None,
        ignore_eos=True,
        detokenize=False,
    )
    finished = {}
    with pytest.MonkeyPatch.context() as patch:
        if asked["lose_from"] is not None:
            lose_chunks(patch, lambda count: min(count, asked["lose_from"]))
            lose_chunks_of_a_cache_server(patch, asked["lose_from"])
        for number, prompt in enumerate(prompts):
            engine.add_request(f"{name}-{number}", {"prompt_token_ids": prompt}, parameters.clone())
        while engine.has_unfinished_requests():
            finished.update({each.request_id: each for each in engine.step() if each.finished})
    return [_answer(finished[f"{name}-{number}"]) for number in range(len(prompts))]


def _answer(output: Any) -> Answer:
    choice, scores = output.outputs[0], output.prompt_logprobs or [None]
    return Answer(
        list(choice.token_ids),
        _own(choice.token_ids, choice.logprobs),
        _own(output.prompt_token_ids[1:], scores[1:]) if len(scores) > 1 else [],
        output.num_cached_tokens,
    )


def _own(tokens: Sequence[int], logprobs: Sequence[Mapping[int, Any]]) -> list[float]:
    """The logprob of each token, out of those that vLLM gives for its place."""
    return [by_token[token].logprob for token, by_token in zip(tokens, logprobs, strict=True)]


def _counters() -> dict[str, int]:
    from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

    from kserve_lmcache.metrics.table import metric

    totals = {LOADED: round(metric("prompt_tokens_total", source="local_cpu").value())}
    for each in get_metrics_snapshot():
        if isinstance(each, Counter):
            totals[each.name] = totals.get(each.name, 0) + each.value
    return totals


def _main(asked: str, answered: str) -> None:
    outcomes = [_outcome(job) for job in json.loads(Path(asked).read_text())]
    Path(answered).write_text(json.dumps([asdict(outcome) for outcome in outcomes]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
