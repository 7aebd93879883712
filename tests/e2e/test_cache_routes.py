"""The routes of the cache on a real server, with a disk and a real Redis."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.commands import run
from tests.support.metrics import samples
from tests.support.server import Server, cached_tokens, engine_environment, long_prompt, running
from tests.support.stores import Store

CHUNK = 256
HEADER, ADMIN, KEY = "X-Tenant-Id", "X-Cache-Admin-Key", "cache-admin-key-7f"
# What is stored sooner after a deletion is not kept.
DELETED_SECONDS = 1.5
TIERS = ("local_cpu", "disk", "remote")


@dataclass(frozen=True)
class Steered:
    """A server, and what it stores into."""

    server: Server
    directory: Path
    store: Store
    key_file: Path

    def ask(
        self, method: str, path: str = "", /, by: str = "", admin: bool = False, **body: Any
    ) -> httpx.Response:
        headers = {HEADER: by} if by else {}
        headers |= {ADMIN: KEY} if admin else {}
        json = {"json": body} if method != "GET" else {}
        url = f"{self.server.openai_url}/cache{path}"
        response = httpx.request(method, url, headers=headers, timeout=120, **json)
        if method == "DELETE":
            time.sleep(DELETED_SECONDS)
        return response

    def cached(self, prompt: str, tenant: str) -> int:
        """Tokens of the prompt that came from a tier, when a tenant asks it."""
        return cached_tokens(self.server.chat(prompt, max_tokens=2, extra_headers={HEADER: tenant}))

    def chunks(self, tenant: str) -> dict[str, int]:
        """The tenant's chunks in each tier, as the route has them."""
        (entry,) = self.ask("GET", by=tenant).json()["entries"] or [{"tiers": {}}]
        return {tier: usage["chunks"] for tier, usage in entry["tiers"].items()}

    def stored(self) -> tuple[set[str], set[bytes]]:
        """The files of the disk tier, and the keys of Redis."""
        return {path.name for path in self.directory.glob("*.kv")}, self.store.chunks()

    def wait_until_stored(self, tenant: str, chunks: int) -> None:
        wanted = dict.fromkeys(TIERS, chunks)
        self.server.process.wait_until(lambda: self.chunks(tenant) == wanted, seconds=20)


@pytest.fixture(scope="module")
def steered(
    logs: Path, redis_store: Store, tmp_path_factory: pytest.TempPathFactory, cut_model: Path
) -> Iterator[Steered]:
    directory = tmp_path_factory.mktemp("disk")
    key_file = tmp_path_factory.mktemp("secret") / "key"
    key_file.write_text(f"{KEY}\n")
    environ = engine_environment(
        LMCACHE_MAX_LOCAL_CPU_SIZE="1.0",
        LMCACHE_LOCAL_DISK=str(directory),
        LMCACHE_MAX_LOCAL_DISK_SIZE="1.0",
        LMCACHE_REMOTE_URL=redis_store.url,
    )
    flags = (
        "--enable-routes=cache",
        "--mode=in-process",
        f"--tenant-header={HEADER}",
        f"--cache-admin-key-file={key_file}",
        # All that is cached comes from the tiers.
        "--no-enable-prefix-caching",
        "--dtype=float32",
    )
    model = (f"--model_id={cut_model}",)
    with running(logs / "steered.log", *flags, environ=environ, model=model) as server:
        yield Steered(server, directory, redis_store, key_file)


def messages(prompt: str) -> list[dict[str, str]]:
    """As :meth:`Server.chat` sends a prompt."""
    return [{"role": "user", "content": prompt}]


def test_a_tenant_deletes_its_own_from_memory_disk_and_redis(steered: Steered) -> None:
    prompt = long_prompt("deleted")
    for tenant in ("a", "b"):
        assert steered.cached(prompt, tenant) == 0
    count = steered.cached(prompt, "a") // CHUNK
    assert count >= 3
    for tenant in ("a", "b"):
        steered.wait_until_stored(tenant, count)
    files, keys = steered.stored()
    response = steered.ask("DELETE", by="a")
    assert response.json() == {"deleted": dict.fromkeys(TIERS, count)}
    assert steered.chunks("a") == {}
    assert steered.chunks("b") == dict.fromkeys(TIERS, count)
    left, left_keys = steered.stored()
    assert (len(files - left), len(keys - left_keys)) == (count, count)
    assert steered.cached(prompt, "a") == 0
    assert steered.cached(prompt, "b") == count * CHUNK
    assert steered.ask("DELETE", by="a", tenant="b").status_code == 403
    assert steered.ask("DELETE", all=True).status_code == 403
    steered.ask("DELETE", admin=True, all=True)
    assert steered.stored() == (set(), set())


def test_a_prompt_is_deleted_alone(steered: Steered) -> None:
    one, other = long_prompt("one"), long_prompt("other")
    for prompt in (one, other):
        steered.cached(prompt, "prompts")
    response = steered.ask("DELETE", by="prompts", messages=messages(one))
    assert response.json()["deleted"]["local_cpu"] >= 3
    assert steered.cached(other, "prompts") >= 3 * CHUNK
    assert steered.cached(one, "prompts") < CHUNK


def test_a_prefetch_loads_a_prompt_before_it_is_asked(steered: Steered) -> None:
    prompt = long_prompt("prefetched")
    first = steered.ask("POST", "/prefetch", by="early", messages=messages(prompt)).json()
    assert first["tokens"]["computed"] > 3 * CHUNK
    assert first["local_cpu"]["chunks"] == first["local_cpu"]["of"] >= 3
    assert steered.cached(prompt, "early") == first["local_cpu"]["of"] * CHUNK
    again = steered.ask("POST", "/prefetch", by="early", messages=messages(prompt)).json()
    assert again["tokens"]["local_cpu"] == first["local_cpu"]["of"] * CHUNK
    assert again["tokens"]["computed"] < CHUNK
    assert steered.cached(prompt, "late") < CHUNK


def test_a_pin_outlives_the_time_to_live(steered: Steered) -> None:
    prompt = long_prompt("pinned")
    body = {"messages": messages(prompt), "ttl": 90_000}
    assert steered.ask("POST", "/pin", by="keeper", **body).status_code == 400
    told = steered.ask("POST", "/pin", by="keeper", **{**body, "ttl": 3600}).json()
    assert told["bytes"] > 0
    assert told["tiers"]["local_cpu"] >= 3
    assert told["errors"] == {}
    assert steered.ask("POST", "/pin", by="keeper", **{**body, "ttl": 0}).status_code == 200


def test_the_command_does_the_same(steered: Steered, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"messages": messages(long_prompt("command"))}))
    flags = (f"--server={steered.server.url}", f"--admin-key-file={steered.key_file}")
    of = ("--tenant=command", f"--request-file={request}")
    assert run("cache", "prefetch", *flags, *of).returncode == 0
    shown = run("cache", "show", "--json", *flags)
    (answer,) = json.loads(shown.stdout).values()
    assert len(answer["entries"]) >= 1
    deleted = run("cache", "delete", *flags, "--tenant=command")
    assert '"local_cpu"' in deleted.stdout
    refused = run("cache", "delete", flags[0], "--all")
    assert refused.returncode == 1
    assert "needs the key of cache_admin_key_file" in refused.stderr
    for result in (shown, deleted, refused):
        assert KEY not in result.stdout + result.stderr


def test_no_key_is_in_the_log(steered: Steered) -> None:
    steered.ask("DELETE", admin=True, all=True)
    assert KEY not in steered.server.process.output()


@pytest.mark.slow
def test_quotas_hold_on_a_server(logs: Path, redis_store: Store, cut_model: Path) -> None:
    quota = 0.02  # GB: some of the prompts
    environ = engine_environment(
        LMCACHE_MAX_LOCAL_CPU_SIZE="1.0", LMCACHE_REMOTE_URL=redis_store.url
    )
    flags = (
        "--enable-routes=cache",
        "--mode=in-process",
        f"--tenant-header={HEADER}",
        f"--tenant-local-quota-size={quota}",
        f"--tenant-remote-quota-size={quota}",
        "--no-enable-prefix-caching",
        "--dtype=float32",
    )
    model = (f"--model_id={cut_model}",)
    with running(logs / "quotas.log", *flags, environ=environ, model=model) as server:
        one = Steered(server, Path("/nowhere"), redis_store, Path("/nowhere"))

        def used(tier: str) -> int:
            (entry,) = one.ask("GET", by="greedy").json()["entries"]
            return int(entry["tiers"][tier]["bytes"])

        for number in range(12):
            one.cached(long_prompt(f"greedy {number}"), "greedy")
            assert used("local_cpu") <= quota * 2**30
        assert samples(server.url)["kserve_lmcache_quota_evicted_total"] > 0
        server.process.wait_until(lambda: used("remote") <= quota * 2**30, seconds=30)
