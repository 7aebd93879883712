"""What a server would do with flags and variables."""

from __future__ import annotations

from argparse import Namespace

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.engine.arguments import resolve_engine_arguments
from kserve_lmcache.engine.plan import OffloadPlan, plan_offload, resolve_configuration
from tests.support.server import MODEL


def planned(*argv: str, **environ: str) -> tuple[Namespace, OffloadPlan, dict[str, str]]:
    """As ``serve`` does before the engine starts: the arguments, the plan, the variables."""
    args = parse_arguments([f"--model_id={MODEL}", "--max-model-len=4096", *argv])
    resolve_engine_arguments(args, environ)
    offload, engine_config = plan_offload(args, resolve_configuration(args, environ), environ)
    assert engine_config.kv_transfer_config == args.kv_transfer_config
    return args, offload, environ
