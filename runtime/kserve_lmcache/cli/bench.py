"""``kserve-lmcache bench``: measure endpoints; ``kserve-lmcache bench report``: from logs again."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from kserve_lmcache.bench import records, targets, trace
from kserve_lmcache.bench.arrivals import Arrivals
from kserve_lmcache.bench.own import running
from kserve_lmcache.bench.report import Report, as_json, as_text, report
from kserve_lmcache.bench.run import Plan
from kserve_lmcache.bench.run import run as run_plan
from kserve_lmcache.bench.statistics import LIMITED
from kserve_lmcache.bench.workloads import WORKLOADS, Request, Shape
from kserve_lmcache.bench.write import write
from kserve_lmcache.errors import UsageError

_INTERRUPTED = 130  # as a shell has it: 128 + SIGINT
_LOG = "log.jsonl"


def run(argv: Sequence[str]) -> tuple[str, int]:
    """Measure, or read logs, and write the report.

    Returns:
        The tables, or JSON, and the exit code: 1 when an endpoint answered no request, 130 when
        the run was ended before its time.

    Raises:
        KServeLMCacheError: it cannot be measured as asked.
    """
    if argv and argv[0] == "report":
        return _report(argv[1:])
    # Flags behind -- are those of the servers that it starts.
    own = list(argv[: argv.index("--")]) if "--" in argv else list(argv)
    serve = list(argv[argv.index("--") + 1 :]) if "--" in argv else []
    parser = build_parser()
    args = parser.parse_args(own)
    _check(args, serve)
    directory = args.output or Path(f"bench-{datetime.now():%Y%m%d-%H%M%S}")
    # What is started is ended by a SIGTERM as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        interrupted = _measure(args, serve, directory, ["kserve-lmcache", "bench", *argv])
    except KeyboardInterrupt:  # while servers started, or a second time
        interrupted = True
    if interrupted and not _has_requests(directory / _LOG):
        return "Ended before anything was measured.", _INTERRUPTED
    found = report(records.read(directory / _LOG), _limits(args.goodput))
    return _written(found, directory, args.json, _INTERRUPTED if interrupted else 0)


def _has_requests(log: Path) -> bool:
    try:
        return bool(records.read(log).requests)
    except UsageError:  # not begun
        return False


def _report(argv: Sequence[str]) -> tuple[str, int]:
    parser = _Parser(
        prog="kserve-lmcache bench report",
        description="Makes the tables and pictures again from the logs of runs.",
        allow_abbrev=False,
    )
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="log.jsonl of a run")
    _add_report_flags(parser)
    args = parser.parse_args(argv)
    found = report(records.merged(map(records.read, args.logs)), _limits(args.goodput))
    return _written(found, args.output or args.logs[0].parent, args.json, 0)


def _written(found: Report, directory: Path, json_wanted: bool, code: int) -> tuple[str, int]:
    for note in write(found, directory):
        print(note, file=sys.stderr)
    answered = {record.endpoint for record in found.log.requests if record.error is None}
    if not code and set(found.log.endpoints()) - answered:
        code = 1
    return as_json(found) if json_wanted else as_text(found), code


def _measure(args: Namespace, serve: list[str], directory: Path, command: list[str]) -> bool:
    requests: list[Request] = []
    if args.trace:
        requests, left_out = trace.read(args.trace, args.speed, args.requests, args.max_tokens)
        if left_out:
            print(f"{left_out} requests of the trace are too long and left out", file=sys.stderr)
    workload = "trace" if args.trace else args.workload
    plan = Plan(
        targets=targets.parse_all(args.compare or ([args.url] if args.url else [])),
        workload=workload,
        shape=_shape(args),
        arrivals=_arrivals(args),
        seed=secrets.randbelow(10**9) if args.seed is None else args.seed,
        trace=requests,
        api=args.api,
        stream=args.stream,
        model=args.model,
        warm_up=args.warm_up,
        timeout=args.timeout,
        api_key=os.environ.get("OPENAI_API_KEY"),
        redis_url=args.redis or "",
        extra=args.extra_body,
        command=command,
    )
    with ExitStack() as stack:
        log = stack.enter_context(records.Writer(directory / _LOG))
        servers: dict[str, float] = {}
        if args.own:
            own = stack.enter_context(running(directory, serve, os.environ))
            own.start_redis(args.redis_server)
            own_targets = [own.start_pair()]
            if args.baseline:
                # The first is what the others are compared with.
                own_targets.insert(0, own.start_without())
            plan = replace(plan, targets=own_targets, redis_url=own.redis_url)
            servers = own.seconds_to_ready
        return run_plan(plan, log, servers)


def _shape(args: Namespace) -> Shape:
    """The workload's, with what the flags say."""
    shape = WORKLOADS[args.workload].defaults
    given = {each.name: getattr(args, each.name, None) for each in fields(Shape)}
    return replace(shape, **{name: value for name, value in given.items() if value is not None})


def _arrivals(args: Namespace) -> list[Arrivals]:
    if args.trace:
        return [Arrivals(trace=True)]
    if args.rate:
        return [Arrivals(rate=rate) for rate in args.rate]
    return [Arrivals(concurrency=clients) for clients in args.concurrency or [1]]


def _limits(texts: Sequence[str]) -> dict[str, float]:
    limits = {}
    for text in texts:
        name, _, value = text.partition(":")
        try:
            limits[name] = float(value) / 1000
        except ValueError:
            limits[name] = -1.0
        if name not in LIMITED or not limits[name] > 0:
            names = ", ".join(LIMITED)
            raise UsageError(f"--goodput {text} is not NAME:MILLISECONDS with one of {names}")
    return limits


def _check(args: Namespace, serve: Sequence[str]) -> None:
    problems = []
    chosen = [bool(args.url), bool(args.compare), args.own]
    if sum(chosen) != 1:
        problems.append("give one of URL, --compare and --own")
    if not args.own and (args.baseline or args.redis_server or serve):
        problems.append("--baseline, --redis-server and flags behind -- are for --own")
    if args.compare and len(args.compare) < 2:
        problems.append("--compare needs two endpoints or more")
    if args.redis and args.own:
        problems.append("--own starts a Redis of its own; --redis is for others")
    if (bool(args.trace) + bool(args.rate) + bool(args.concurrency)) > 1:
        problems.append("give one of --trace, --rate and --concurrency")
    if args.workload == "lengths" and (args.rate or args.trace):
        problems.append("--workload=lengths has an order of its own: no --rate, no --trace")
    if not args.trace and (args.speed != 1 or args.max_tokens):
        problems.append("--speed and --max-tokens are for --trace")
    _limits(args.goodput)
    if problems:
        raise UsageError("; ".join(problems))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def build_parser() -> argparse.ArgumentParser:
    """The parser of what is in front of ``--``."""
    parser = _Parser(
        prog="kserve-lmcache bench",
        usage="kserve-lmcache bench (URL | --compare A B … | --own [-- FLAGS OF SERVE]) [options]\n"
        "       kserve-lmcache bench report LOG… [options]",
        description="Measures OpenAI-compatible endpoints. An endpoint is [NAME=]URL[,URL…]; "
        "several URLs are replicas that share a store.",
        epilog="The environment's OPENAI_API_KEY is sent where it is set.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("url", nargs="?", metavar="URL", help="one endpoint")
    what.add_argument("--compare", nargs="+", metavar="ENDPOINT", help="several, in turns")
    what.add_argument(
        "--own", action="store_true", help="a pair of replicas and a Redis, started for this run"
    )
    what.add_argument(
        "--baseline", action="store_true", help="with --own: compare with offloading off"
    )
    what.add_argument("--redis-server", metavar="FILE", help="with --own: the Redis to start")
    what.add_argument("--model", help="its name; by default the first that the endpoint lists")
    what.add_argument(
        "--redis",
        metavar="URL",
        help="the endpoints' store, used by nothing else meanwhile: count its bytes, and read as "
        "many through a bare socket (workload lengths)",
    )
    _add_workload_flags(parser.add_argument_group("what is asked"))
    how = parser.add_argument_group("how it is asked")
    how.add_argument(
        "--concurrency", nargs="+", type=_positive, metavar="N", help="clients, one run each (1)"
    )
    how.add_argument(
        "--rate", nargs="+", type=float, metavar="R", help="requests a second, Poisson arrivals"
    )
    how.add_argument("--trace", type=Path, metavar="FILE", help="replay a Mooncake trace (JSONL)")
    how.add_argument("--speed", type=_above_zero, default=1.0, help="of the trace (1)")
    how.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="leave out longer requests of the trace"
    )
    how.add_argument(
        "--api",
        choices=["completions", "chat"],
        default="completions",
        help="completions (prompts are token ids where the endpoint takes them), or chat (words)",
    )
    how.add_argument("--no-stream", dest="stream", action="store_false", help="whole answers")
    how.add_argument(
        "--extra-body", type=_object, default={}, metavar="JSON", help="more fields of each request"
    )
    how.add_argument(
        "--pause",
        type=_seconds,
        help="seconds between the turns of endpoints, and the parts of lengths (1.5: for a second "
        "vLLM keeps a core busy after its last token)",
    )
    how.add_argument("--warm-up", type=_count, default=2, help="requests that do not count (2)")
    how.add_argument("--timeout", type=_above_zero, default=600.0, help="seconds (600)")
    _add_report_flags(parser)
    return parser


def _add_workload_flags(group: argparse._ArgumentGroup) -> None:
    abouts = "; ".join(f"{name}: {workload.about}" for name, workload in WORKLOADS.items())
    group.add_argument("--workload", choices=list(WORKLOADS), default="chat", help=abouts)
    group.add_argument("--seed", type=_count, help="the same requests again (by default new ones)")
    group.add_argument(
        "--requests", type=_positive, help="in all; for lengths: rounds; of a trace: at most"
    )
    group.add_argument("--output-tokens", type=_positive, help="of each answer")
    group.add_argument("--unique-tokens", type=_positive, help="of a message, or a random prompt")
    group.add_argument("--shared-tokens", type=_positive, help="of a document, chunk, or system")
    group.add_argument("--groups", type=_positive, help="conversations, documents or chunks")
    group.add_argument("--turns", type=_positive, help="of a conversation")
    group.add_argument("--chunks", type=_positive, help="of a rag request")
    group.add_argument("--lengths", nargs="+", type=_positive, help="prompt tokens, for lengths")


def _add_report_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument("--output", type=Path, metavar="DIR", help="for the log and the report")
    group.add_argument("--json", action="store_true", help="print JSON instead of tables")
    group.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="count requests within limits: ttft, tpot, e2el, in milliseconds",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def _above_zero(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is not a JSON object")
    return value
