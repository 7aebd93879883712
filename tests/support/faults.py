"""Faults of a remote store, each for as long as a ``with`` lasts; after it the store is healthy.

A matrix iterates over :data:`FAULTS`:

    with fault.applied(target):
        ...
"""

from __future__ import annotations

import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.background import repeating
from tests.support.damage import DAMAGES, Change, damaged
from tests.support.link import Behaviour, Link, link_to
from tests.support.namespaces import Names, private_names
from tests.support.network_faults import Lossy, NeverAnswers, ResetInAnswer, Trickle
from tests.support.stores import Store

RESTART_SECONDS = 1.0
# What is left of the data by the eviction under pressure.
KEPT_SHARE = 0.5


@dataclass(frozen=True)
class Target:
    """A store and the way to it, which clients must take for a fault to reach them.

    Attributes:
        store: a server with a process of its own; its address goes past the link.
        link: the way to it.
        names: the host names of the client's process, which must start with their prefix.
        name: of the link's host there.
    """

    store: Store
    link: Link
    names: Names | None = None
    name: str = "cache.example"

    @property
    def url(self) -> str:
        """Through the link, without user and password; by name where there are names."""
        host = self.name if self.names else self.link.host
        scheme = "rediss" if self.store.ca_file else "redis"
        database = f"/{self.store.database}" if self.store.database else ""
        return f"{scheme}://{host}:{self.link.port}{database}"


Apply = Callable[[Target], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """What can happen to a store.

    Attributes:
        name: short, for the rows of a table.
        needs_names: the target must have names.
        loses_data: what the store held, in part or whole, is not there after it.
    """

    name: str
    apply: Apply
    needs_names: bool = False
    loses_data: bool = False

    @contextmanager
    def applied(self, target: Target) -> Iterator[None]:
        """The fault for a while; after it the store answers."""
        with self.apply(target):
            yield
        target.store.wait_until_it_answers()

    def __str__(self) -> str:
        return self.name


@contextmanager
def target_of(store: Store, directory: Path | None = None) -> Iterator[Target]:
    """The store behind a link; with a directory for their files, there are names as well."""
    with ExitStack() as stack:
        link = stack.enter_context(link_to(store.host, store.port))
        names = stack.enter_context(private_names(directory)) if directory else None
        target = Target(store, link, names)
        if names:
            names.add(target.name, link.host)
        yield target


@contextmanager
def refused(target: Target) -> Iterator[None]:
    """Nothing listens; at the end the store comes back with what it held."""
    target.store.shut_down()
    with target.link.cut():
        try:
            yield
        finally:
            target.store.start()


@contextmanager
def killed(target: Target, seconds: float = RESTART_SECONDS) -> Iterator[None]:
    """It dies, and is started again after ``seconds``, empty; the fault lasts at least as long."""
    down = ExitStack()

    def restart() -> None:
        target.store.start()
        down.close()

    target.store.kill()
    down.enter_context(target.link.cut())
    timer = threading.Timer(seconds, restart)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@contextmanager
def stopped(target: Target) -> Iterator[None]:
    """It hangs (SIGSTOP): the kernel accepts connections, and answers come when it goes on."""
    process = target.store.own_process()
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


def behaving(make: Callable[[], Behaviour]) -> Apply:
    """The link behaves like that."""

    @contextmanager
    def applied(target: Target) -> Iterator[None]:
        with target.link.behaving(make()):
            yield

    return applied


@contextmanager
def password_rotated(target: Target) -> Iterator[None]:
    """The store's password is another, and every connection must log in again."""
    store = target.store
    with closing(store.client(single_connection_client=True)) as client:

        def change(password: str | None) -> None:
            if store.username:
                client.execute_command("ACL SETUSER", store.username, "resetpass", f">{password}")
            else:
                client.config_set("requirepass", password or "")
            client.client_kill_filter(_type="normal", skipme=True)

        change(secrets.token_hex(8))
        try:
            yield
        finally:
            change(store.password)


@contextmanager
def configured(target: Target, **settings: Any) -> Iterator[None]:
    """The server's settings are these, and at the end what they were."""
    with closing(target.store.client()) as client:
        before = {name: client.config_get(name)[name] for name in _dashed(settings)}
        _configure(client, _dashed(settings))
        try:
            yield
        finally:
            _configure(client, before)


@contextmanager
def out_of_memory(target: Target) -> Iterator[None]:
    """Every write is refused with OOM; reads go on."""
    with configured(target, maxmemory_policy="noeviction", maxmemory=1):
        yield


@contextmanager
def evicting(target: Target, kept: float = KEPT_SHARE) -> Iterator[None]:
    """Memory is short: half of the data goes at once, and more with each write."""
    with closing(target.store.client()) as client:
        memory = client.info("memory")
    room = memory["used_memory"] - int(memory["used_memory_dataset"] * (1 - kept))
    with configured(target, maxmemory_policy="allkeys-lru", maxmemory=room):
        yield


@contextmanager
def name_gone(target: Target) -> Iterator[None]:
    """The store's name does not resolve, and connections by it are lost."""
    assert target.names, "the target has no names"
    with target.names.gone(target.name):
        target.link.reset_connections()
        yield


@contextmanager
def written_by_another(target: Target) -> Iterator[None]:
    """Another client writes the values that there are, over and over, as a replica's twin would."""
    with closing(target.store.client()) as client:

        def write() -> None:
            for key in target.store.chunks():
                value = client.get(key)
                if value is not None:
                    client.set(key, value)

        with repeating(write):
            yield


def values(change: Change) -> Apply:
    """Every value that the store holds is damaged."""

    @contextmanager
    def applied(target: Target) -> Iterator[None]:
        with damaged(target.store, change):
            yield

    return applied


_ALL = (
    Fault("refused", refused),
    Fault("killed, back after 1 s", killed, loses_data=True),
    Fault("stopped", stopped),
    Fault("never answers", behaving(NeverAnswers)),
    Fault("one byte a second", behaving(Trickle)),
    Fault("reset in mid-value", behaving(ResetInAnswer)),
    Fault("200 ms and 30 % loss", behaving(partial(Lossy, delay=0.2, loss=0.3))),
    Fault("name gone", name_gone, needs_names=True),
    Fault("password rotated", password_rotated),
    Fault("out of memory", out_of_memory),
    Fault("evicting", evicting, loses_data=True),
    Fault("two writers", written_by_another),
    *(Fault(f"values {name}", values(change)) for name, change in DAMAGES.items()),
)
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _ALL}
# As many seconds as they say.
LONG_FAULTS = [
    Fault(f"killed, back after {seconds} s", partial(killed, seconds=seconds), loses_data=True)
    for seconds in (10, 60)
]


def _dashed(settings: dict[str, Any]) -> dict[str, str]:
    return {name.replace("_", "-"): str(value) for name, value in settings.items()}


def _configure(client: Any, settings: dict[str, str]) -> None:
    # One by one: before Redis 7 a command sets one of them.
    for name, value in settings.items():
        client.config_set(name, value)
