"""The proof that a tier gives back what it was given."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.codec import (
    Buffer,
    CorruptValueError,
    Layout,
    decode_value,
    encode_header,
)
from kserve_lmcache.tiers.guard.store import CallKind, Entry, Store, StoreFullError

# Calls an operation with the client for one kind of call, within a deadline in seconds; returns
# None where the call fails.
Call = Callable[[CallKind, Callable[[Store], Any], float], Any]


class WrongValueError(RuntimeError):
    """A tier returned something else than was stored."""


def prove(call: Call, limits: TierLimits, layout: Layout, payload: Buffer) -> str:
    """Store a value under a key that no request can have, read it back, and delete it.

    Args:
        call: of the tier, which answers.
        limits: the tier's deadlines.
        layout: of the payload.
        payload: any bytes.

    Returns:
        What happened, in words.

    Raises:
        WrongValueError: the tier returned other bytes.
    """
    key = f"kserve-lmcache-proof-{uuid.uuid4().hex}"
    entry = Entry(key, encode_header(key, layout, payload), payload)

    def write(store: Store) -> str:
        try:
            store.write([entry])
        except StoreFullError as error:
            return f"full ({error})"
        return ""

    def read(store: Store) -> str:
        values = store.read([key])
        try:
            value = next(iter(values))
            if value is None:
                return "forgot a chunk at once"
            found, stored = decode_value(key, value.whole())
            same = found == layout and stored == memoryview(payload)
            return "" if same else "other bytes than were stored"
        except CorruptValueError as error:
            return f"other bytes than were stored: {error}"
        finally:
            if close := getattr(values, "close", None):
                close()

    began = time.monotonic()
    full = call("write", write, limits.write)
    if full is None:
        return "did not answer a write"
    if full:
        return str(full)
    wrong = call("load", read, limits.load)
    call("write", lambda store: store.delete([key]), limits.write)
    if wrong is None:
        return "did not answer a read"
    if wrong.startswith("other"):
        raise WrongValueError(f"the tier returned {wrong}")
    return wrong or f"{1000 * (time.monotonic() - began):.1f} ms"
