"""Who may see and change which part of the cache.

The API key of the server is every client's. With it, a client acts on what is its own tenant's, or
what has a ``cache_salt`` that it knows. A second key, in the file that ``cache_admin_key_file``
names, allows everything.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import Request

from kserve_lmcache.config.stores import read_password
from kserve_lmcache.engine.errors import RefusedError
from kserve_lmcache.engine.tenant import TENANT

HEADER = "x-cache-admin-key"
_REFUSED = (
    f"this needs the key of cache_admin_key_file in the header {HEADER}: with the API key alone, a "
    "client acts on the cache of its own tenant, or of a cache_salt that it names"
)


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        is_admin: whether the request has the second key.
        tenant: the request's own; empty for none.
    """

    is_admin: bool
    tenant: str

    def acting_for(self, tenant: str | None) -> str:
        """The tenant for which the caller acts.

        Args:
            tenant: that the request names; ``None`` for its own.

        Raises:
            RefusedError: it is another one, and the caller may not act for others.
        """
        if tenant is None or tenant == self.tenant:
            return self.tenant
        self.require_admin()
        return tenant

    def require_owner(self, tenant: str, salt: str | None) -> None:
        """Refuse a change of what belongs to nobody in particular, without the second key.

        Raises:
            RefusedError: it is refused.
        """
        if not tenant and not salt:
            self.require_admin()

    def require_admin(self) -> None:
        """Refuse a caller without the second key.

        Raises:
            RefusedError: it is refused.
        """
        if not self.is_admin:
            raise RefusedError(HTTPStatus.FORBIDDEN, _REFUSED, "PermissionDeniedError")


def caller_of(request: Request, key_file: str | None) -> Caller:
    """The caller of a request.

    Args:
        request: with the header of the second key, or without.
        key_file: has the second key; ``None`` where nobody has one.

    Raises:
        RefusedError: the key is wrong, or the file cannot be read.
    """
    given = request.headers.get(HEADER)
    if given is None:
        return Caller(False, TENANT.get())
    if not _is_key(given, key_file):
        message = f"the key in the header {HEADER} is wrong"
        raise RefusedError(HTTPStatus.FORBIDDEN, message, "PermissionDeniedError")
    return Caller(True, TENANT.get())


def _is_key(given: str, key_file: str | None) -> bool:
    if key_file is None:
        return False
    try:
        # Read for each request: a mounted Secret may be rotated.
        key = read_password(key_file)
    except (OSError, UnicodeDecodeError) as error:
        message = f"the file of cache_admin_key_file cannot be read ({type(error).__name__})"
        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, message) from None
    encoded = given.encode("utf-8", "surrogateescape")
    return bool(key) and hmac.compare_digest(encoded, key.encode("utf-8"))
