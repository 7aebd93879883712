"""``kserve-lmcache bench``: compare endpoints, or read the log of a run again."""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kserve_lmcache import __version__
from kserve_lmcache.bench import records
from kserve_lmcache.bench.client import Endpoint, parse
from kserve_lmcache.bench.load import Load
from kserve_lmcache.bench.own import Servers
from kserve_lmcache.bench.report import as_text, report, write
from kserve_lmcache.bench.store import BareStore, remote_of
from kserve_lmcache.bench.sweep import Sweep
from kserve_lmcache.cli.parser import Parser, at_least
from kserve_lmcache.errors import UsageError
from kserve_lmcache.redaction import redact_text, redact_urls

_INTERRUPTED = 130  # as a shell has it: 128 + SIGINT
_LENGTHS = [512, 1024, 2048, 4096, 8192]


def run(argv: Sequence[str]) -> tuple[str, int]:
    """Measure, or read a log, and write the report.

    Returns:
        The tables or JSON, and the exit code: 1 when an endpoint answered no request, 130 when
        the run was interrupted.
    """
    if argv[:1] == ["report"]:
        parser = Parser("kserve-lmcache bench report", description="Makes the report of a log.")
        parser.add_argument("log", type=Path, metavar="LOG", help="log.jsonl of a run")
        args = _with_output(parser).parse_args(argv[1:])
        return _reported(args.log, args.output or args.log.parent, args.json, 0)
    # The flags behind -- are those of the servers that the run starts.
    end = argv.index("--") if "--" in argv else len(argv)
    args, flags = build_parser().parse_args(argv[:end]), argv[end + 1 :]
    if not args.own and (args.baseline or args.redis_server or flags):
        raise UsageError("--baseline, --redis-server and flags behind -- are for --own")
    if args.redis:
        remote_of(args.redis)  # refused before anything is measured or written
    if args.seed is None:
        args.seed = secrets.randbelow(10**9)
    directory = args.output or Path(f"bench-{datetime.now():%Y%m%d-%H%M%S}")
    path, code = directory / "log.jsonl", 0
    log = records.writer(path)
    # A SIGTERM ends the servers of the run as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            endpoints = _endpoints(args, flags, directory, stack)
            named = [(one.label, [redact_urls(r.api) for r in one.replicas]) for one in endpoints]
            head = {
                "format": records.FORMAT,
                "version": __version__,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": shlex.join(["kserve-lmcache", "bench", *map(redact_text, argv)]),
                "endpoints": [{"label": label, "urls": urls} for label, urls in named],
                "model": endpoints[0].replicas[0].model,
                "seed": args.seed,
                "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
            }
            log("run", head)
            _measure(args, endpoints, directory, log)
        log("end", {})
    except KeyboardInterrupt:
        code = _INTERRUPTED
        if not path.stat().st_size:
            return "Interrupted before the first request.", code
    return _reported(path, directory, args.json, code)


def _reported(path: Path, directory: Path, as_json: bool, code: int) -> tuple[str, int]:
    log = records.read(path)
    found = report(log)
    print(write(found, directory), file=sys.stderr)
    silent = set(log.labels) - {each.endpoint for each in log.requests if each.error is None}
    return json.dumps(found, indent=2) if as_json else as_text(found), code or int(bool(silent))


def _endpoints(
    args: Namespace, flags: Sequence[str], directory: Path, stack: ExitStack
) -> list[Endpoint]:
    """Connected endpoints. With ``--own``, their servers are started first."""
    texts = args.compare or [args.url]
    if args.own:
        servers = stack.enter_context(Servers(directory, os.environ))
        args.redis = servers.redis(args.redis_server)
        remote = {"LMCACHE_REMOTE_URL": args.redis}
        urls = [servers.replica(f"replica-{n}", *flags, **remote) for n in (1, 2)]
        texts = [f"offload={','.join(urls)}"]
        if args.baseline:  # the others are divided by the first
            texts.insert(0, f"no offload={servers.replica('no-offload', *flags, '--offload=off')}")
    endpoints = [parse(text, os.environ.get("OPENAI_API_KEY")) for text in texts]
    if len({endpoint.label for endpoint in endpoints}) < len(endpoints):
        raise UsageError("two endpoints have one name; give each its own, NAME=URL")
    for replica in (replica for endpoint in endpoints for replica in endpoint.replicas):
        replica.connect(args.model)
    return endpoints


def _measure(args: Namespace, endpoints: Sequence[Endpoint], directory: Path, log: Any) -> None:
    store = BareStore(remote_of(args.redis)) if args.redis else None
    extra = {"max_tokens": args.output_tokens, **args.extra_body}
    sweep = Sweep(endpoints, args.lengths, args.rounds, extra, args.seed, args.pause, store)
    sweep.warm_up(args.warm_up)
    kinds = sum(2 + (len(endpoint.replicas) > 1) for endpoint in endpoints)
    total = None if args.load else kinds * args.rounds * len(args.lengths)
    with tqdm(total=total, unit="request", dynamic_ncols=True, disable=None) as bar:

        def write(kind: str, values: Any) -> None:
            log(kind, values)
            bar.update(kind == "request")

        if args.load is None:
            sweep.run(write)
            return
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        with (directory / "vllm.log").open("w") as output, redirect_stdout(output):
            for phase, clients in enumerate(args.concurrency or [None]):
                seed, flags = args.seed + phase * args.rounds, shlex.split(args.load)
                Load(endpoints, flags, clients, args.rounds, seed, args.pause).run(write)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the flags in front of ``--``."""
    parser = Parser(
        "kserve-lmcache bench",
        "kserve-lmcache bench (URL | --compare A B … | --own [-- FLAGS OF SERVE]) [options]\n"
        "       kserve-lmcache bench report LOG [options]",
        "Measures the time to first token over prompt lengths: of a new prompt, and of the same "
        "prompt again, on the same replica and on another one. An endpoint is [NAME=]URL[,URL…]; "
        "several URLs are replicas that share a store. OPENAI_API_KEY is sent if it is set.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("url", nargs="?", metavar="URL", help="measure one endpoint")
    what.add_argument("--compare", nargs="+", metavar="ENDPOINT", help="compare several endpoints")
    what.add_argument("--own", action="store_true", help="start two replicas with a Redis")
    add, some = parser.add_argument, at_least(1)
    add("--baseline", action="store_true", help="with --own: compare with offloading off")
    add("--redis-server", metavar="FILE", help="with --own: program of the Redis (redis-server)")
    add("--redis", metavar="URL", help="show the lower bound; only the endpoints use this Redis")
    add("--model", help="name of the model (the first that an endpoint lists)")
    add("--lengths", nargs="+", type=some, default=_LENGTHS, metavar="N", help="prompt tokens")
    add("--output-tokens", type=some, default=8, metavar="N", help="tokens of each answer (8)")
    add("--extra-body", type=_fields, default={}, metavar="JSON", help="add to each request")
    add("--load", metavar="FLAGS", help="measure the load of 'vllm bench serve FLAGS' instead")
    add("--concurrency", nargs="+", type=some, metavar="N", help="with --load: clients, in turn")
    add("--rounds", type=some, default=5, metavar="N", help="turns of each endpoint (5)")
    add("--seed", type=at_least(0), metavar="N", help="repeat the prompts of this seed")
    add("--warm-up", type=at_least(0), default=2, metavar="N", help="requests ahead (2)")
    add("--pause", type=at_least(0.0), default=1.5, help="seconds before a turn (1.5)")
    return _with_output(parser)


def _with_output(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--output", type=Path, metavar="DIR", help="for the log and the report")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _fields(text: str) -> dict[str, Any]:
    return dict(json.loads(text))
