"""Imports point one way, and nothing runs at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import ROOT

PACKAGE = ROOT / "runtime" / "kserve_lmcache"

# From the command down to what depends on nothing; a module imports only from later layers.
LAYERS = (
    ("__main__",),
    ("cli.main",),
    ("cli.serve", "cli.config", "cli.doctor", "cli.bench", "cli.demo_model"),
    ("bench.run", "bench.write"),
    ("bench.load", "bench.own", "bench.page", "bench.pictures"),
    ("bench.drawing",),
    ("bench.picture", "bench.report", "bench.targets"),
    ("bench.compare", "bench.floor", "bench.tiers"),
    ("bench.client", "bench.statistics", "bench.store", "bench.trace"),
    ("bench.arrivals", "bench.records", "bench.workloads"),
    ("bench.prompts",),
    ("bench",),
    ("cli", "server"),
    ("rest_server", "data_plane"),
    ("model",),
    ("status.report",),
    ("status.watch",),
    ("status.history",),
    ("status.samples",),
    ("offload", "status"),
    ("supported_models", "engine", "http.register", "http.middleware"),
    ("status.routes",),
    ("cli.arguments", "base_model", "engine_arguments", "local_tier", "metrics.endpoint"),
    ("vllm_model", "engine_process", "http.vllm_app", "http.limits", "http.time_out"),
    ("http.errors", "request_rules"),
    ("http.answers", "lifecycle", "starting"),
    ("remote.plugin",),
    ("remote.lmcache_store",),
    ("remote.daemon_threads", "remote.lmcache_objects"),
    ("remote.lmcache_mooncake",),
    ("connector",),
    ("connector.connector", "connector.report"),
    ("connector.scheduler_side", "connector.worker_side"),
    ("connector.lmcache_engine",),
    (
        "connector.accounts",
        "connector.cores",
        "connector.cpu_copy",
        "connector.isolation",
        "connector.loads",
        "connector.promises",
    ),
    ("connector.side",),
    ("connector.faults", "connector.kv_groups", "connector.step"),
    ("connector.traces",),
    ("identity.engine",),
    ("identity.model", "identity.namespace"),
    ("config.credentials", "config.engine_file"),
    ("remote.options",),
    ("remote.tier",),
    ("remote.writer",),
    ("remote.breaker", "remote.counters", "remote.lane", "remote.pace", "remote.redis_store"),
    ("remote.disk_store", "remote.spoiled"),
    ("remote.disk_directory",),
    ("remote.disk_index",),
    ("config.disk_tier", "config.flags"),
    ("config.remote_tier",),
    ("config.resolve",),
    ("config.rules", "config.sources"),
    ("config.configuration",),
    ("config.values",),
    ("config.keys",),
    ("doctor.at_start",),
    ("doctor.run", "doctor.report"),
    ("doctor.accelerator", "doctor.engine", "doctor.local_disk", "doctor.store"),
    ("doctor.local", "doctor.lm_server", "doctor.redis_store"),
    ("doctor.redis_replicas",),
    ("doctor.model_files",),
    ("doctor.redis_memory", "doctor.redis_topology", "doctor.round_trip", "doctor.tls"),
    ("doctor.redis_session",),
    ("doctor.network",),
    ("doctor.stage",),
    ("doctor.check",),
    ("doctor.replica",),
    ("identity",),
    ("identity.weights",),
    ("identity.cache", "identity.hub", "identity.samples"),
    ("identity.files", "identity.safetensors_header"),
    ("identity.errors",),
    ("doctor", "remote.redis_client"),
    ("http", "http.routes"),
    ("config", "logs", "settings", "engine_shape", "environment", "remote.address", "resources"),
    ("metrics.table",),
    ("metrics", "kv_size", "remote.store"),
    ("remote.envelope", "remote.limits", "remote.rdma"),
    ("remote",),
    ("errors",),
    ("redaction", "start_up"),
    ("",),
)


def module_name(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
            "kserve_lmcache"
        ):
            continue
        base = (node.module or "").removeprefix("kserve_lmcache").lstrip(".")
        for alias in node.names:
            inner = f"{base}.{alias.name}".lstrip(".")
            is_module = (PACKAGE / inner.replace(".", "/")).with_suffix(".py").exists()
            found.add(inner if is_module else base)
    return found


def test_every_module_has_its_layer_and_imports_only_from_later_ones() -> None:
    layer_of = {name: number for number, names in enumerate(LAYERS) for name in names}
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    assert set(files) == set(layer_of)
    for name, path in files.items():
        for imported in imports(path):
            assert layer_of[imported] > layer_of[name], f"{name} imports {imported}"


@pytest.mark.parametrize(
    "modules",
    [
        "kserve_lmcache.cli.main, kserve_lmcache.engine_process",
        # A laptop without an engine measures a remote endpoint.
        "kserve_lmcache.cli.bench, kserve_lmcache.bench.pictures",
    ],
)
def test_importing_the_package_imports_neither_vllm_nor_torch(modules: str) -> None:
    probe = (
        f"import sys, {modules};"
        "print([name for name in ('vllm', 'torch', 'lmcache', 'kserve') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_files_stay_small() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
