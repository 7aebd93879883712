"""A Redis or Valkey server: login, version, clock, memory, persistence, a stored value, rights."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import redis
from redis.exceptions import MovedError, NoPermissionError

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.doctor import tls
from kserve_lmcache.doctor.check import Finding, Status, failure, ok, size, skipped, warning
from kserve_lmcache.doctor.connection import CheckedStore
from kserve_lmcache.tiers.guard.codec import CorruptValueError, Layout, decode_value, encode_header
from kserve_lmcache.tiers.guard.store import Entry, StoreError, StoreFullError
from kserve_lmcache.tiers.redis.client import KEY_PREFIX
from kserve_lmcache.tiers.redis.store import (
    CLUSTER_COMMANDS,
    COMMANDS,
    STEERING_COMMANDS,
    RedisStore,
)

NEEDS_INFO = skipped("needs INFO, which is refused")

Information = Mapping[str, Any]

# The server's times are compared with ours only in logs and in expiry times of minutes.
_MAX_CLOCK_DIFFERENCE = 5.0  # seconds
_ROUND_TRIP_TTL = 60  # seconds, for a value that is not deleted
_FIX_LOG = "Look at the log of the server."
_FIX_POLICY = "Set maxmemory-policy to allkeys-lru or allkeys-lfu on the server."
_WORST_FIRST = (Status.FAILURE, Status.WARNING, Status.SKIPPED, Status.OK)


def login(store: CheckedStore) -> Finding:
    """Logs in, and gets the first answer."""
    remote, place = store.remote, store.place
    try:
        store.client.ping()
    except NoPermissionError:
        pass  # logged in, but this user may not run PING
    except redis.AuthenticationError as error:
        return _login_refused(store, store.quote(error))
    except redis.TimeoutError:
        return store.no_answer(place, "accepts connections and does not answer")
    except redis.BusyLoadingError:
        return failure(f"{place} is loading its data", "Wait until the server has loaded it.")
    except redis.ResponseError as error:
        fix = "Look at the configuration and the log of the server."
        if "index is out of range" in str(error):
            fix = f"Use a database that the server has, in {store.setting}: 0 always is."
        return failure(f"{place} says: {store.quote(error)}", fix)
    except (redis.RedisError, OSError) as error:
        if store.address and not remote.uses_tls and tls.speaks_tls(store.address, store.timeout):
            scheme = "valkeys" if remote.scheme == "valkey" else "rediss"
            return failure(f"{place} speaks TLS", f"Write {scheme}:// in {store.setting}.")
        fix = (
            f"Look at the server's log, or whether another service listens there ({remote.source})."
        )
        return failure(f"{place} does not answer as Redis does: {store.quote(error)}", fix)
    return ok(f"by password, as {store.user}" if remote.password else "without a password")


def _login_refused(store: CheckedStore, reason: str) -> Finding:
    place, user = store.place, store.user
    if not store.remote.password:
        fix = "Set LMCACHE_REMOTE_PASSWORD, or LMCACHE_REMOTE_PASSWORD_FILE to a mounted Secret."
        return failure(f"{place} asks for a password, and none is given", fix)
    if "without any password configured" in reason or "no password is set" in reason:
        fix = "Leave the password out, or set one on the server (requirepass, or an ACL)."
        return failure(f"{place} has no password, and one is given for {user}", fix)
    fix = "Correct the password, or LMCACHE_REMOTE_USERNAME if the server has ACL users."
    return failure(f"{place} refuses {user} with this password: {reason}", fix)


def server(store: CheckedStore) -> Finding:
    """Reads the kind and the version of the server."""
    try:
        information = store.client.info()
    except NoPermissionError:
        fix = "Allow it, on the server: ACL SETUSER … +info."
        return warning(f"{store.user} may not run INFO: less can be checked", fix)
    except redis.RedisError as error:
        return failure(f"INFO failed: {store.quote(error)}", _FIX_LOG)
    store.information = {store.place: information}
    return ok(kind(information))


def kind(information: Information) -> str:
    """Returns name and version. Valkey and Dragonfly have the version of a Redis too."""
    for name in ("valkey", "dragonfly"):
        if version := information.get(f"{name}_version"):
            return f"{name.capitalize()} {version}"
    return f"Redis {information.get('redis_version', 'of an unknown version')}"


def clock(store: CheckedStore) -> Finding:
    """Compares the server's clock with this machine's."""
    before = time.time()
    try:
        seconds, microseconds = store.client.time()
    except NoPermissionError:
        return skipped(f"{store.user} may not run TIME")
    except redis.RedisError as error:
        return skipped(f"TIME failed: {store.quote(error)}")
    return judge_clock(seconds + microseconds / 1e6 - (before + time.time()) / 2)


def judge_clock(ahead: float) -> Finding:
    """Judges how many seconds the server's clock is ahead of this machine's."""
    evidence = f"{abs(ahead):.3f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if abs(ahead) > _MAX_CLOCK_DIFFERENCE:
        return warning(evidence, "Run a time service (chrony) on both machines.")
    return ok(evidence)


def memory(store: CheckedStore) -> Finding:
    """Reads the limit and the policy from INFO: most managed servers forbid CONFIG."""
    return worst_of(store.information, judge_memory)


def judge_memory(information: Information) -> Finding:
    """Judges one server's limit and its policy."""
    limit, used = information.get("maxmemory"), information.get("used_memory", 0)
    policy = str(information.get("maxmemory_policy", "by a policy that is not shown"))
    if limit is None:
        return skipped("the server does not show maxmemory")
    if not limit:
        return warning(
            f"no limit (maxmemory 0), {size(used)} used: it grows until the system kills it",
            "Set maxmemory on the server, and maxmemory-policy to allkeys-lru or allkeys-lfu.",
        )
    evidence = f"{size(used)} of {size(limit)} used, {policy}"
    if policy == "noeviction" and used >= limit:
        return failure(f"full: {evidence} refuses every write", _FIX_POLICY)
    if policy == "noeviction":
        return warning(f"{evidence} fills up, and then refuses every write", _FIX_POLICY)
    if policy.startswith("volatile-"):
        return warning(f"{evidence} evicts only what has an expiry time", _FIX_POLICY)
    return ok(evidence)


def persistence(store: CheckedStore) -> Finding:
    """Reads whether the server writes to its disk. A cache needs no copy there."""
    points: str | None
    try:
        points = str(store.client.config_get("save").get("save", ""))
    except redis.RedisError:
        points = None  # a managed server, or a user who may not
    return worst_of(store.information, lambda found: judge_persistence(found, points))


def judge_persistence(information: Information, points: str | None) -> Finding:
    """Judges one server by its append-only file and its save points (``None``: not shown)."""
    ways = ["an append-only file"] if information.get("aof_enabled") else []
    if points:
        ways.append(f"snapshots (save {points})")
    if ways:
        fix = "A cache needs none: set save '' and appendonly no on the server."
        return warning(f"{' and '.join(ways)}: forks the server, which may double its memory", fix)
    if points is None:
        return ok("no append-only file; the server does not show its save points")
    return ok("none, as is right for a cache")


def worst_of(
    servers: Mapping[str, Information], judge: Callable[[Information], Finding]
) -> Finding:
    """Returns the worst finding of several servers, and its server if their findings differ."""
    if not servers:
        return NEEDS_INFO
    findings = {place: judge(information) for place, information in servers.items()}
    place, worst = min(findings.items(), key=lambda item: _WORST_FIRST.index(item[1].status))
    if len({each.evidence for each in findings.values()}) > 1:
        worst = replace(worst, evidence=f"{place}: {worst.evidence}")
    return worst


def round_trip(store: CheckedStore) -> Finding:
    """Does what the remote tier does, command by command, with a value as large as a chunk."""
    timeout = 2 * store.timeout  # a chunk takes longer than the answer to a question
    key, payload = f"doctor:{uuid.uuid4().hex}", os.urandom(store.context.chunk_bytes)
    entry = Entry(key, encode_header(key, Layout("doctor", ()), payload), payload)
    amount = size(len(payload))
    limits = TierLimits(connect=timeout, write=timeout, ttl=_ROUND_TRIP_TTL)
    with closing(RedisStore(store.remote, limits, "write", lambda: entry.size)) as tier:
        calls: dict[str, Callable[[], Any]] = {
            "ping": tier.ping,  # the connection and the login are not measured
            "set": lambda: tier.write([entry]),
            "strlen": lambda: tier.sizes([key]),
            "getrange": lambda: [value and value.whole() for value in tier.read([key])],
            "expire": lambda: tier.keep([key]),
            "unlink": lambda: tier.delete([key]),
        }
        answers: dict[str, Any] = {}
        seconds: dict[str, float] = {}
        refused: dict[str, NoPermissionError] = {}
        for command in COMMANDS:
            start = time.perf_counter()
            try:
                answers[command] = calls[command]()
            except StoreError as error:
                if not isinstance(error.__cause__, NoPermissionError):
                    return _not_stored(store, error, amount, timeout)
                refused[command] = error.__cause__
            seconds[command] = time.perf_counter() - start
    if set(refused) - {"unlink"}:
        return _not_allowed(store, refused)
    (value,) = answers["getrange"]
    if value is None:
        fix = "Raise maxmemory on the server: it evicts at once what it has just stored."
        return failure(f"a value of {amount} was gone when it was read back", fix)
    try:
        decode_value(key, value)
        if answers["strlen"] != [entry.size]:
            raise CorruptValueError(f"STRLEN says {answers['strlen'][0]} bytes")
    except CorruptValueError as error:
        fix = "Do not use this server, nor a proxy before it: it damages what it keeps."
        return failure(f"a value of {amount} came back changed: {error}", fix)
    write, read = (entry.size / 1e6 / max(seconds[name], 1e-9) for name in ("set", "getrange"))
    evidence = f"{amount} written at {write:.0f} MB/s, read at {read:.0f} MB/s"
    if refused:
        fix = "Allow this user to delete: ACL SETUSER … +unlink."
        return warning(
            f"{evidence}, but not deleted (NoPermissionError); it expires in a minute", fix
        )
    return ok(evidence)


def listing(store: CheckedStore) -> Iterator[Finding]:
    """Sends what the cache routes and the quotas of tenants send, where the server has one of them.

    One step of SCAN is enough to know the right: a whole SCAN may take seconds.
    """
    features = " and ".join(store.context.remote_listed_by)
    if not features:
        return
    key = f"{KEY_PREFIX}doctor:{uuid.uuid4().hex}"
    calls: dict[str, Callable[[], Any]] = {
        "scan": lambda: store.client.scan(count=1),
        "ttl": lambda: store.client.ttl(key),
    }
    refused: dict[str, NoPermissionError] = {}
    for command in STEERING_COMMANDS:
        try:
            calls[command]()
        except NoPermissionError as error:
            refused[command] = error
        except MovedError:
            pass  # another node of the cluster has the key; the right was looked at before
        except redis.RedisError as error:
            yield warning(f"{command.upper()} failed: {store.quote(error)}", _FIX_LOG)
            return
    if refused:
        fix = f"Allow this user to list the cache: ACL SETUSER … {_rights(STEERING_COMMANDS)}."
        yield warning(f"{features} cannot list the store: {_refusals(store, refused)}", fix)
    else:
        yield ok(f"{features} can list the store")


def _not_allowed(store: CheckedStore, refused: Mapping[str, NoPermissionError]) -> Finding:
    """The user lacks a right. The fix has every right that this configuration needs."""
    names = [
        *COMMANDS,
        *(STEERING_COMMANDS if store.context.remote_listed_by else ()),
        *(CLUSTER_COMMANDS if store.remote.scheme == "redis-cluster" else ()),
    ]
    fix = f"Allow this user to keep a cache: ACL SETUSER … ~* {_rights(names)}."
    return failure(_refusals(store, refused), fix)


def _rights(commands: Iterable[str]) -> str:
    """The commands as the rules of an ACL."""
    return " ".join(f"+{name}" for name in commands)


def _refusals(store: CheckedStore, refused: Mapping[str, NoPermissionError]) -> str:
    reasons = "; ".join(dict.fromkeys(store.quote(error) for error in refused.values()))
    return f"refused: {', '.join(refused).upper()} ({reasons})"


def _not_stored(store: CheckedStore, error: StoreError, amount: str, timeout: float) -> Finding:
    cause = error.__cause__
    if isinstance(cause, redis.TimeoutError):
        fix = "Look at the load of the server and the speed of the network."
        return failure(f"{amount} could not be written and read within {timeout:g} s each", fix)
    if isinstance(error, StoreFullError):
        fix = (
            "Raise maxmemory on the server, and set maxmemory-policy to allkeys-lru or allkeys-lfu."
        )
        return failure(f"{amount} could not be written: the server is full", fix)
    return failure(f"{amount} could not be written and read: {store.quote(cause)}", _FIX_LOG)
