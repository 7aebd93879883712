"""A Redis or Valkey store, from the first byte to a stored chunk."""

from __future__ import annotations

import time
from collections.abc import Iterator

import redis
from redis.exceptions import NoPermissionError

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.doctor import (
    network,
    redis_memory,
    redis_replicas,
    redis_topology,
    round_trip,
    tls,
)
from kserve_lmcache.doctor.check import Finding, Subject, failure, ok, skipped, warning
from kserve_lmcache.doctor.redis_session import Session
from kserve_lmcache.doctor.stage import Stage, in_order

ADDRESS = "remote address"
LOGIN = "remote login"
SERVER = "remote server"
CLOCK = "remote clock"

# Times of the server are compared with ours only in logs and in expiry times of minutes.
_LARGEST_CLOCK_DIFFERENCE = 5.0


def examine(remote: Remote, subject: Subject) -> Iterator[Finding]:
    """All stages, for a remote that speaks Redis."""
    try:
        location = remote.redis_location()
    except ValueError as error:
        yield failure(ADDRESS, f"remote_url {error}", f"Correct remote_url ({remote.source}).")
        return
    session = Session(remote, location, subject)
    try:
        yield from in_order(_stages(session, subject), subject)
    finally:
        session.close()


def _stages(session: Session, subject: Subject) -> list[Stage]:
    remote, socket_path = session.remote, session.location.socket_path
    if socket_path:
        stages = [
            Stage(
                network.CONNECTION,
                lambda: network.connect_unix_socket(remote, socket_path, session.patience),
            )
        ]
    else:
        stages = session.road.stages()
    if remote.uses_tls:
        stages.append(
            Stage(
                tls.NAME,
                lambda: tls.encryption(remote, session.road.reached[0], session.patience),
                (network.CONNECTION,),
            )
        )
    if remote.scheme == "redis-sentinel":
        stages.append(
            Stage(
                redis_topology.SENTINEL,
                lambda: redis_topology.sentinel(session),
                (network.CONNECTION,),
            )
        )
    road = (stages[-1].name,)
    topology, memory = redis_topology.NAME, redis_memory.NAME
    return [
        *stages,
        Stage(LOGIN, lambda: login(session), road),
        Stage(SERVER, lambda: server(session), (LOGIN,)),
        Stage(topology, lambda: redis_topology.topology(session), (SERVER,)),
        Stage(CLOCK, lambda: clock(session), (SERVER,)),
        Stage(memory, lambda: redis_memory.memory(session), (SERVER,)),
        Stage(redis_memory.PERSISTENCE, lambda: redis_memory.persistence(session), (SERVER,)),
        Stage(round_trip.NAME, lambda: round_trip.round_trip(session), (LOGIN, topology, memory)),
        Stage(
            redis_replicas.NAME,
            lambda: redis_replicas.replicas(session, subject),
            (LOGIN, topology),
        ),
    ]


def login(session: Session) -> Finding:
    """Say who we are, and hear the first answer."""
    remote = session.remote
    try:
        session.client.ping()
    except NoPermissionError:
        pass  # logged in, but PING is not among what this user may do
    except redis.AuthenticationError as error:
        return _not_let_in(session, session.said(error))
    except redis.TimeoutError:
        return failure(
            LOGIN,
            f"{session.place} accepts connections and does not answer within "
            f"{session.patience:g} s",
            f"Look why the server hangs, or whether another service listens there "
            f"({remote.source}).",
        )
    except redis.BusyLoadingError:
        return failure(LOGIN, f"{session.place} is loading its data", "Wait until it has.")
    except redis.ResponseError as error:
        return failure(LOGIN, f"{session.place} says: {session.said(error)}", _fix(error, remote))
    except (redis.RedisError, OSError) as error:
        return _no_answer(session, error)
    if not remote.password:
        return ok(LOGIN, "without a password")
    return ok(LOGIN, f"by password, as {_user(remote)}")


def server(session: Session) -> Finding:
    """What kind of server it is."""
    try:
        information = session.client.info()
    except NoPermissionError:
        return warning(
            SERVER,
            f"{_user(session.remote)} may not run INFO: less can be checked",
            "Allow it, on the server: ACL SETUSER … +info.",
        )
    except redis.RedisError as error:
        return failure(
            SERVER, f"INFO failed: {session.said(error)}", "Look at the log of the server."
        )
    session.information = {session.place: information}
    return ok(SERVER, kind(information))


def kind(information: dict[str, object]) -> str:
    """Name and version by INFO; Valkey says which Redis it stands in for as well."""
    for name in ("valkey", "dragonfly"):
        if version := information.get(f"{name}_version"):
            return f"{name.capitalize()} {version}"
    return f"Redis {information.get('redis_version', 'of an unknown version')}"


def clock(session: Session) -> Finding:
    """The server's clock beside ours."""
    before = time.time()
    try:
        seconds, microseconds = session.client.time()
    except NoPermissionError:
        return skipped(CLOCK, f"{_user(session.remote)} may not run TIME")
    except redis.RedisError as error:
        return skipped(CLOCK, f"TIME failed: {session.said(error)}")
    return difference(seconds + microseconds / 1e6 - (before + time.time()) / 2)


def difference(seconds: float) -> Finding:
    """Judge how far the server's clock is ahead of ours (behind, when negative)."""
    evidence = f"{abs(seconds):.3f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"
    if abs(seconds) > _LARGEST_CLOCK_DIFFERENCE:
        return warning(CLOCK, evidence, "Run a time service (chrony) on both machines.")
    return ok(CLOCK, evidence)


def _user(remote: Remote) -> str:
    return f"user {remote.username!r}" if remote.username else "the default user"


def _not_let_in(session: Session, reason: str) -> Finding:
    remote = session.remote
    if not remote.password:
        return failure(
            LOGIN,
            f"{session.place} asks for a password, and none is given",
            "Set LMCACHE_REMOTE_PASSWORD, or LMCACHE_REMOTE_PASSWORD_FILE to a mounted Secret.",
        )
    if "without any password configured" in reason or "no password is set" in reason:
        return failure(
            LOGIN,
            f"{session.place} has no password, and one is given for {_user(remote)}",
            "Leave the password out, or set one on the server (requirepass, or an ACL).",
        )
    return failure(
        LOGIN,
        f"{session.place} refuses {_user(remote)} with this password: {reason}",
        "Correct the password, or LMCACHE_REMOTE_USERNAME if the server has ACL users.",
    )


def _fix(error: redis.ResponseError, remote: Remote) -> str:
    if "index is out of range" in str(error):
        return f"Use a database that the server has, in remote_url ({remote.source}): 0 always is."
    return "Look at the configuration and the log of the server."


def _no_answer(session: Session, error: Exception) -> Finding:
    """It broke off, or sent what is not Redis's protocol."""
    address = session.address
    if (
        address is not None
        and not session.remote.uses_tls
        and tls.speaks_tls(address, session.patience)
    ):
        return failure(
            LOGIN,
            f"{session.place} speaks TLS",
            f"Write {'valkeys' if session.remote.scheme == 'valkey' else 'rediss'}:// in "
            f"remote_url ({session.remote.source}).",
        )
    return failure(
        LOGIN,
        f"{session.place} does not let us in: {session.said(error)}",
        f"Look at the log of the server, or whether another service listens there "
        f"({session.remote.source}).",
    )
