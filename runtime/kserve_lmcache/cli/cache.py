"""``kserve-lmcache cache``: shows, deletes, loads and keeps what servers have cached."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kserve_lmcache.cli.cache_client import CacheClient
from kserve_lmcache.cli.parser import Parser
from kserve_lmcache.config.stores import read_password
from kserve_lmcache.errors import UsageError

ACTIONS = ("show", "delete", "prefetch", "pin")
_SELECTS = ("tenant", "tenant_digest", "cache_salt", "adapter", "adapter_digest")
_ADMIN_HEADER = "X-Cache-Admin-Key"
_COLUMNS = ("TENANT", "ADAPTER", "TIER", "CHUNKS", "MiB", "OLDEST s")


def run(argv: Sequence[str]) -> str:
    """What the servers answered, as text.

    Raises:
        CacheServerRefusedError: a server refuses, or does not answer. Those before it have done
            what was asked.
        UsageError: the flags do not fit the action.
    """
    args = build_parser().parse_args(argv)
    headers, body = _headers(args), _body(args)
    clients = [CacheClient(url, headers, args.ca_file) for url in args.server]
    answers = {client.url: _ask(client, args.action, body) for client in clients}
    if args.json:
        return json.dumps(answers, indent=2)
    lines = _table(answers) if args.action == "show" else _lines(answers)
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The parser of this command's flags."""
    parser = Parser(
        prog="kserve-lmcache cache",
        description="Shows, deletes, loads and keeps what servers have cached. The servers need "
        "--enable-routes=cache. Each replica has a local tier of its own: name every one.",
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=ACTIONS, help="what to do.")
    parser.add_argument(
        "--server",
        action="append",
        metavar="URL",
        help="a server, http://HOST:PORT; several with several flags (http://localhost:8080 "
        "without one)",
    )
    parser.add_argument(
        "--api-key-file", metavar="FILE", help="file with the API key; else VLLM_API_KEY"
    )
    parser.add_argument(
        "--admin-key-file",
        metavar="FILE",
        help="file with the key of the server's cache_admin_key_file",
    )
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="header of the requests, such as the tenant's",
    )
    parser.add_argument("--ca-file", metavar="FILE", help="certificates to trust for https")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chunks = parser.add_argument_group("selection")
    chunks.add_argument("--tenant", help="tenant, as the gateway's header names it")
    chunks.add_argument("--tenant-digest", metavar="DIGEST", help="tenant, as show prints it")
    chunks.add_argument("--cache-salt", metavar="SALT", help="cache_salt of requests")
    chunks.add_argument("--adapter", metavar="NAME", help="name of a loaded adapter")
    chunks.add_argument("--adapter-digest", metavar="DIGEST", help="adapter, as show prints it")
    chunks.add_argument("--all", action="store_true", help="everything of the model")
    chunks.add_argument("--prompt-file", metavar="FILE", help="file with a prompt as text")
    chunks.add_argument(
        "--request-file",
        metavar="FILE",
        help="file with the JSON of a request for a completion or a chat, whose prompt is meant",
    )
    chunks.add_argument("--model", metavar="NAME", help="model or adapter of the prompt")
    chunks.add_argument("--ttl", type=float, metavar="SECONDS", help="of a pin; 0 ends it")
    return parser


def _headers(args: argparse.Namespace) -> dict[str, str]:
    headers = {}
    for header in args.header:
        name, separator, value = header.partition(":")
        if not separator:
            raise UsageError(f"--header {name} is not NAME:VALUE")
        headers[name.strip()] = value.strip()
    key = _key(args.api_key_file) if args.api_key_file else os.environ.get("VLLM_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    if args.admin_key_file:
        headers[_ADMIN_HEADER] = _key(args.admin_key_file)
    args.server = args.server or ["http://localhost:8080"]
    return headers


def _body(args: argparse.Namespace) -> dict[str, Any]:
    """The body of the requests.

    Raises:
        UsageError: a flag does not fit the action, or a file cannot be read.
    """
    body: dict[str, Any] = {}
    if args.request_file:
        try:
            body = json.loads(_text(args.request_file))
        except ValueError as error:
            raise UsageError(f"{args.request_file} is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise UsageError(f"{args.request_file} has no JSON object")
    if args.prompt_file:
        body["prompt"] = _text(args.prompt_file)
    body |= {name: value for name in _SELECTS if (value := getattr(args, name)) is not None}
    body |= {"model": args.model} if args.model else {}
    body |= {"all": True} if args.all else {}
    has_prompt = "prompt" in body or "messages" in body
    if args.action in ("prefetch", "pin") and not has_prompt:
        raise UsageError(f"{args.action} needs --prompt-file or --request-file")
    if args.action == "pin":
        if args.ttl is None:
            raise UsageError("pin needs --ttl")
        body["ttl"] = args.ttl
    elif args.ttl is not None:
        raise UsageError("--ttl is of pin alone")
    if args.action == "show" and body:
        raise UsageError("show takes no selection: it shows all that the keys allow")
    return body


def _key(path: str) -> str:
    try:
        return read_password(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {_reason(error)}") from None


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _ask(client: CacheClient, action: str, body: Mapping[str, Any]) -> Any:
    if action == "show":
        return client.ask("GET", "")
    if action == "delete":
        return client.ask("DELETE", "", body)
    return client.ask("POST", f"/{action}", body)


def _table(answers: Mapping[str, Any]) -> Iterator[str]:
    """A table of each server's tiers by tenant and adapter."""
    for url, answer in answers.items():
        rows = [_COLUMNS]
        for entry in answer["entries"]:
            names = ",".join(entry["adapter_names"]) or entry["adapter"] or "-"
            for tier, usage in entry["tiers"].items():
                age = usage["oldest_seconds"]
                rows.append(
                    (
                        entry["tenant"] or "-",
                        names,
                        tier,
                        str(usage["chunks"]),
                        f"{usage['bytes'] / 2**20:.1f}",
                        "-" if age is None else f"{age:.0f}",
                    )
                )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        yield url
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for tier, reason in answer["errors"].items():
            yield f"{tier}: {reason}"


def _lines(answers: Mapping[str, Any]) -> Iterator[str]:
    for url, answer in answers.items():
        yield f"{url}: {json.dumps(answer)}"
