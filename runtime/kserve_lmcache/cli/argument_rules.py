"""What holds for the arguments of ``serve`` before a parser knows its flags, without vLLM."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence

from kserve_lmcache.errors import UsageError

# Where KServe mounts a storageUri.
DEFAULT_MODEL_DIRECTORY = "/mnt/models"
# An item of a list of arguments that holds a flag and its value, with a blank between them.
_FLAG_AND_BLANK = re.compile(r"\s*(--?[A-Za-z][\w.-]*)\s+(.*)|\s+(--?[A-Za-z].*)", re.DOTALL)


def refuse_blanks(argv: Sequence[str]) -> None:
    """Refuse an item that holds a flag and a blank. Parsers take such an item for a word.

    Raises:
        UsageError: with every such item. Its value is not shown: it may be a secret.
    """
    found = [match for match in map(_FLAG_AND_BLANK.fullmatch, argv) if match]
    if not found:
        return
    lines = []
    for match in found:
        flag, value = (match[1], match[2]) if match[1] else (match[3].split("=")[0].split()[0], "")
        fix = f"{flag}=… or two items, {flag} and its value" if value else flag
        lines.append(f"one argument holds {flag} and a blank; write {fix}")
    raise UsageError("; ".join(lines))


def stray_words(args: Namespace) -> Iterator[str]:
    """The model that is named twice, which is mostly a word without its flag."""
    named = {
        "--model_id": args.model_id,
        "--model": args.model,
        "the word without a flag": args.model_tag,
    }
    given = {where: name for where, name in named.items() if name is not None}
    if "" in given.values():
        yield "an argument is empty; remove it, or give the model a name"
    elif len(set(given.values())) > 1:
        word = ""
        if args.model_tag is not None:
            shown = args.model_tag.partition("=")[0]
            word = f"; {shown!r} stands alone: write the flag that it belongs to, or remove it"
        yield f"{' and '.join(given)} name different models{word}"


def unquote(argument: str) -> str:
    """Remove the single quotes that YAML keeps around JSON: ``--flag='{"a": 1}'``."""
    flag, separator, value = argument.rpartition("='") if "='" in argument else ("", "", argument)
    if separator:
        value = f"'{value}"
    inner = value[1:-1]
    if len(value) < 2 or not (value[0] == value[-1] == "'") or not _is_json_object(inner):
        return argument
    return f"{flag}={inner}" if separator else inner


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False
