"""Calls over a Unix socket, by gRPC: with deadlines, and an error at once when the server ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import msgspec

from kserve_lmcache.cache_server.messages import CALLS

_SERVICE = "kserve_lmcache.CacheServer"
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # Every channel has a connection of its own, which dies with the server.
    ("grpc.use_local_subchannel_pool", 1),
)
# The calls that wait for tiers below have threads of their own. All others need microseconds, and
# find a thread however many wait.
_WAITING = frozenset({"wait"})
_THREADS = 64  # of either kind


class CacheServerError(Exception):
    """A call failed.

    Attributes:
        is_gone: whether the server has ended, rather than answers late or refuses.
    """

    def __init__(self, message: str, is_gone: bool = False) -> None:
        super().__init__(message)
        self.is_gone = is_gone


class LateError(CacheServerError):
    """Who asked waits no longer. The answer may come."""


class Call:
    """A call that runs."""

    def __init__(self, future: Any, response: type[msgspec.Struct]) -> None:
        self._future = future
        self._response = response

    def done(self) -> bool:
        """Whether :meth:`result` does not wait."""
        return bool(self._future.done())

    def result(self, seconds: float | None = None) -> Any:
        """The answer.

        Args:
            seconds: to wait at most; ``None`` for the deadline of the call.

        Raises:
            CacheServerError: there is none. No later than the deadline of the call.
            LateError: there is none after ``seconds``.
        """
        try:
            return msgspec.msgpack.decode(self._future.result(seconds), type=self._response)
        except grpc.FutureTimeoutError:
            raise LateError("no answer in time") from None
        except grpc.RpcError as error:
            raise _error(error) from None
        except grpc.FutureCancelledError:
            raise CacheServerError("the call was cancelled") from None
        except msgspec.DecodeError as error:
            raise CacheServerError(f"an answer that nobody understands: {error}") from error

    def cancel(self) -> None:
        """Wait for the answer no longer."""
        self._future.cancel()

    def cancelled(self) -> bool:
        """Whether :meth:`cancel` ended the call."""
        return bool(self._future.cancelled())

    def then(self, callback: Callable[[Call], None]) -> None:
        """Call ``callback`` when the call has ended, in a thread of gRPC's."""
        self._future.add_done_callback(lambda _: callback(self))


class Client:
    """Calls a server.

    Args:
        socket: of the server.
    """

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._methods = {
            name: (self._channel.unary_unary(f"/{_SERVICE}/{name}"), response)
            for name, (_, response) in CALLS.items()
        }

    def begin(self, name: str, request: msgspec.Struct, seconds: float) -> Call:
        """Begin a call.

        Args:
            name: of the call (:data:`.messages.CALLS`).
            request: the request.
            seconds: the deadline.
        """
        method, response = self._methods[name]
        return Call(method.future(msgspec.msgpack.encode(request), timeout=seconds), response)

    def call(self, name: str, request: msgspec.Struct, seconds: float) -> Any:
        """Call, and wait for the answer.

        Raises:
            CacheServerError: there is none.
        """
        return self.begin(name, request, seconds).result()

    def close(self) -> None:
        """Close the connection. Calls that run fail."""
        self._channel.close()


def serve(socket: Path, handlers: Mapping[str, Callable[[Any], Any]]) -> grpc.Server:
    """Answer calls on a socket that does not exist yet.

    Args:
        socket: of the server.
        handlers: by the name of the call. A handler that raises fails the call.

    Raises:
        RuntimeError: the socket cannot be made.
    """
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="cache-server"), options=_OPTIONS
    )
    waiting = ThreadPoolExecutor(_THREADS, thread_name_prefix="cache-server-wait")
    methods = {}
    for name, handler in handlers.items():
        handle = _handler(handler, CALLS[name][0])
        if name in _WAITING:
            # As gRPC's own health service gives its watchers threads.
            handle.experimental_thread_pool = waiting  # type: ignore[attr-defined]
        methods[name] = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    return server


def _handler(
    handler: Callable[[Any], Any], request: type[msgspec.Struct]
) -> Callable[[bytes, Any], bytes]:
    def handle(body: bytes, context: Any) -> bytes:
        return msgspec.msgpack.encode(handler(msgspec.msgpack.decode(body, type=request)))

    return handle


def _error(error: grpc.RpcError) -> CacheServerError:
    code = error.code()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return CacheServerError("no answer before the deadline")
    if code == grpc.StatusCode.UNAVAILABLE:
        return CacheServerError("the cache server is gone", is_gone=True)
    return CacheServerError(f"{code.name}: {error.details()}")
