"""A running server that speaks the Redis protocol."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.stores.binaries import redis_binary

START_SECONDS = 10.0


@dataclass
class Store:
    """Where it is, who we are there, and its process unless it is in a container.

    Attributes:
        unix_socket: the way in, instead of host and port.
        ca_file: of the authority of its certificate; when it is set, the way in is by TLS.
        cert_file: of our own certificate, for mutual TLS.
        key_file: of its key.
        dump: where :meth:`shut_down` leaves what the server holds.
    """

    host: str
    port: int
    process: Process | None = None
    password: str | None = None
    username: str | None = None
    database: int = 0
    unix_socket: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    dump: Path | None = None

    @property
    def url(self) -> str:
        """Without user and password."""
        if self.unix_socket:
            return f"unix://{self.unix_socket}" + (f"?db={self.database}" if self.database else "")
        scheme = "rediss" if self.ca_file else "redis"
        return f"{scheme}://{self.host}:{self.port}" + (
            f"/{self.database}" if self.database else ""
        )

    def client(self, **options: Any) -> redis.Redis:
        """Without retries, which would hide a fault, and without patience for ever."""
        login = {"username": self.username, "password": self.password, "db": self.database}
        patience = {"socket_timeout": 30, "retry": Retry(NoBackoff(), 0)}
        options = {**login, **patience, **options}
        if self.unix_socket:
            return redis.Redis(unix_socket_path=str(self.unix_socket), **options)
        if self.ca_file:
            files = (self.ca_file, self.cert_file, self.key_file)
            names = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
            options.update(ssl=True, **dict(zip(names, map(_text, files), strict=True)))
        return redis.Redis(self.host, self.port, **options)

    def chunks(self) -> set[bytes]:
        """The keys of cached chunks, without what servers announce there."""
        with closing(self.client()) as client:
            return {key for key in client.scan_iter(count=1000) if b":replicas:" not in key}

    def answers(self) -> bool:
        try:
            with closing(self.client(socket_timeout=2)) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def own_process(self) -> Process:
        assert self.process is not None, "a server in a container has no process here"
        return self.process

    def kill(self) -> None:
        """End it at once; what it holds is lost."""
        self.own_process().signal(signal.SIGKILL)
        self.own_process().wait(START_SECONDS)
        if self.dump:  # of an earlier end
            self.dump.unlink(missing_ok=True)

    def shut_down(self) -> None:
        """End it; what it holds comes back at its next start."""
        with closing(self.client()) as client:
            client.shutdown(save=True)
        self.own_process().wait(START_SECONDS)

    def start(self) -> None:
        """Start it again where it was."""
        self.process = self.own_process().again()
        self.wait_until_it_answers()

    def stop(self) -> None:
        self.own_process().stop()

    def wait_until_it_answers(self) -> None:
        self.own_process().wait_until(self.answers, START_SECONDS)


@contextmanager
def node(
    directory: Path, *options: str, binary: str | None = None, **fields: Any
) -> Iterator[Store]:
    """A server process on a free port that keeps its data in memory.

    Args:
        directory: for its log, and the data of a :meth:`Store.shut_down`.
        options: of the server.
        binary: which server; Redis unless it is given.
        fields: of the :class:`Store`. The server wants its password; with a username, it has that
            user, who may do everything, and no default user.
    """
    binary = binary or redis_binary()
    port = free_port()
    dump = directory / f"dump-{port}.rdb"
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--dir", str(directory), "--dbfilename", dump.name]
    command += [*_login(fields.get("username"), fields.get("password")), *options]
    process = Process(command, directory / f"{Path(binary).name}-{port}.log")
    store = Store("127.0.0.1", port, process, dump=dump, **fields)
    try:
        store.wait_until_it_answers()
        yield store
    finally:
        store.stop()


def _login(username: str | None, password: str | None) -> tuple[str, ...]:
    if username:
        user = ("--user", username, "on", f">{password}", "~*", "&*", "+@all")
        return (*user, "--user", "default", "off")
    return ("--requirepass", password) if password else ()


def wait_for(what: str, seconds: float, *stores: Store, ready: Any) -> None:
    """Wait for ``ready``; fails with the stores' logs when time runs out."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs: Sequence[str] = [store.own_process().tail(20) for store in stores]
            raise AssertionError("\n".join([f"no {what} after {seconds} s", *logs]))
        time.sleep(0.05)


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
