"""The parser of ``serve``: the flags of KServe's servers, of vLLM, and of this package.

Every flag works with dashes and with underscores. An unknown flag is an error that names the
nearest known flag; KServe's own server ignores it.
"""

from __future__ import annotations

import argparse
import re
from argparse import Namespace
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from vllm.utils.argparse_utils import FlexibleArgumentParser

from kserve_lmcache.cli.argument_rules import (
    DEFAULT_MODEL_DIRECTORY,
    refuse_blanks,
    stray_words,
    unquote,
)
from kserve_lmcache.cli.kserve_flags import REFUSED
from kserve_lmcache.compat.kserve import argument_parser as kserve_argument_parser
from kserve_lmcache.compat.vllm import make_arg_parser
from kserve_lmcache.config.flags import add_setting_flags
from kserve_lmcache.engine.arguments import require_device
from kserve_lmcache.errors import UsageError

# Flags of vLLM's own HTTP server, which have no effect on KServe's HTTP server. Not every version
# has each.
_HTTP_SERVER_FLAGS = (
    "uds",
    "root_path",
    "middleware",
    "headless",
    "api_server_count",
    "grpc",
    "sse_keep_alive_interval",
    "enable_server_load_tracking",
    "data_parallel_supervisor_port",
    "dp_supervisor_probe_interval_s",
    "dp_supervisor_probe_timeout_s",
    "dp_supervisor_probe_failure_threshold",
)
# Flags of vLLM for engines of one model on several nodes, which `vllm serve` starts one by one.
_MANY_ENGINES = (
    "data_parallel_rank",
    "data_parallel_start_rank",
    "data_parallel_address",
    "data_parallel_rpc_port",
    "data_parallel_hybrid_lb",
    "data_parallel_external_lb",
)
KSERVE, SAME, OURS = "KServe", "the same", "ours"
# Flags that more than one of the three parsers has: whose flag each is here, in every spelling. The
# flag of KServe and of vLLM is the same flag where it sets the same attribute to the same end.
SHARED = {
    "--grpc-port": KSERVE,  # in vLLM 0.32 the port of its Rust frontend
    "--log-config-file": KSERVE,  # vLLM 0.32 would configure the engine's processes by the file
    "--log-level": OURS,  # in vLLM 0.32 the short form of --logging-config.log_level
    "--ssl-certfile": SAME,
    "--ssl-keyfile": SAME,
}
# Flags of KServe's Hugging Face server that only its other backend reads.
_ENCODER_FLAGS = (
    "disable_lower_case",
    "disable_special_tokens",
    "return_token_type_ids",
    "return_offsets_mapping",
    "return_probabilities",
    "return_raw_logits",
)


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """Parse the server's arguments (without the program's name).

    Raises:
        UsageError: an unknown flag, a bad value, or a flag that could not take effect.
        KServeLMCacheError: vLLM cannot compute here.
    """
    refuse_blanks(argv)
    require_device()
    parser = build_parser()
    args: Namespace = parser.parse_args([unquote(argument) for argument in argv])
    if problems := [*stray_words(args), *_flags_without_effect(parser, args)]:
        raise UsageError("; ".join(problems))
    return args


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``kserve-lmcache serve``."""
    kserve = kserve_argument_parser()
    parser = _Parser(
        prog="kserve-lmcache serve",
        parents=[kserve],
        conflict_handler="resolve",  # the flag that is added last stays (SHARED)
        allow_abbrev=False,
    )
    _add_hugging_face_flags(parser)
    _add_dashed_spellings(parser)
    make_arg_parser(parser)
    _add_kserves_flags_again(parser, kserve)
    add_setting_flags(parser)
    parser.set_defaults(
        # None marks a flag that the user did not give.
        model=None,
        model_name=None,
        tensor_parallel_size=None,
        port=None,
        http_port=None,
        gpu_memory_utilization=None,
        enable_prompt_tokens_details=True,
        # A progress bar is for a terminal; in a log each of its steps is a line.
        use_tqdm_on_load=False,
        # KServe's default writes two lines a request.
        enable_latency_logging=False,
        uvicorn_log_level=None,
        # KServe opens an insecure gRPC port by default, to which an InferenceService sends nothing.
        enable_grpc=False,
    )
    return parser


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        raise UsageError(self._with_nearest(message))

    def _with_nearest(self, message: str) -> str:
        unknown = re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)
        if unknown is None:
            return message
        flags = [word.split("=")[0] for word in unknown[1].split() if word.startswith("-")]
        if not flags:
            return f"{unknown[1]!r} is not a flag"
        return "; ".join(self._unknown(flag) for flag in flags)

    def _unknown(self, flag: str) -> str:
        near = get_close_matches(flag.replace("_", "-"), self._option_string_actions, n=1)
        return f"there is no flag {flag}" + (f"; did you mean {near[0]}?" if near else "")


def _add_hugging_face_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of KServe's huggingfaceserver that vLLM's parser does not have."""
    group = parser.add_argument_group("KServe Hugging Face server")
    group.add_argument(
        "--model_dir",
        default=DEFAULT_MODEL_DIRECTORY,
        help="Directory of the model when there is no --model_id; KServe mounts storageUri here.",
    )
    group.add_argument("--model_id", default=None, help="Hugging Face hub id or a directory.")
    group.add_argument("--model_revision", default=None, help="Revision of the model on the hub.")
    group.add_argument(
        "--max_length", dest="max_model_len", type=int, help="Older name of --max_model_len."
    )
    group.add_argument(
        "--backend",
        choices=["auto", "vllm", "huggingface"],
        default="auto",
        help="vllm, the only backend with a KV cache to offload (auto means it).",
    )
    group.add_argument(
        "--disable_log_requests", action="store_true", help="Never log requests (the default)."
    )
    group.add_argument("--task", default=None, help="Only for the huggingface backend.")
    group.add_argument(
        "--tensor_input_names", default=None, help="Only for the huggingface backend."
    )
    for name in _ENCODER_FLAGS:
        group.add_argument(
            f"--{name}", action="store_true", help="Only for the huggingface backend."
        )


def _add_dashed_spellings(parser: argparse.ArgumentParser) -> None:
    """Add the spelling with dashes: vLLM's parser turns underscores in flags into dashes."""
    for action in parser._actions:
        for option in list(action.option_strings):
            dashed = option.replace("_", "-")
            if dashed not in parser._option_string_actions:
                action.option_strings = [*action.option_strings, dashed]
                parser._option_string_actions[dashed] = action


def _add_kserves_flags_again(
    parser: argparse.ArgumentParser, kserve: argparse.ArgumentParser
) -> None:
    """Add the flags that are KServe's although vLLM has them too.

    Each value has an attribute of its own: vLLM reads what has the name of its own flag.
    """
    group = parser.add_argument_group("KServe model server")
    for flag in (flag for flag, owner in SHARED.items() if owner == KSERVE):
        name = flag.removeprefix("--").replace("-", "_")
        (action,) = (action for action in kserve._actions if action.dest == name)
        group.add_argument(
            f"--{name}",
            flag,
            dest=f"kserve_{name}",
            metavar=name.upper(),
            type=action.type or str,
            default=action.default,
            help=f"{action.help} This is KServe's flag, not vLLM's flag of the same name.",
        )


def _flags_without_effect(parser: argparse.ArgumentParser, args: Namespace) -> list[str]:
    refused = [
        f"--{name.replace('_', '-')} has no effect on KServe's HTTP server, which serves here"
        for name in _HTTP_SERVER_FLAGS
        if getattr(args, name, None) != parser.get_default(name)
    ]
    refused += [
        f"--{name.replace('_', '-')} joins engines of several nodes, which this server does not: "
        "use a service on several nodes (workerSpec), or more replicas"
        for name in _MANY_ENGINES
        if getattr(args, name, None) != parser.get_default(name)
    ]
    refused += [
        f"--{name} has no effect here. {fix.rstrip('.')}"
        for name, fix in REFUSED.items()
        if getattr(args, name, None) != parser.get_default(name)
    ]
    if args.backend == "huggingface":
        refused.append("--backend=huggingface has no KV cache to offload; use KServe's own runtime")
    if args.workers != 1:
        refused.append("--workers above 1 never serves: the engine cannot be shared by processes")
    return refused
