"""The tag of a key: what the KV of a request depends on beside the model and the tokens.

A key ends in the tag, ``…@kserve%SALT.TENANT.ADAPTER``. Each part is a digest of 32 hexadecimal
digits, or empty. The salt and the adapter keep requests apart. The tenant is a part of the salt; it
is there once more so that all of a tenant's chunks can be found.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

# LMCache puts the names that begin so into the key.
NAME = "lmcache.tag.kserve"
_MARK = "@kserve%"
_TEXT = re.compile(r"([0-9a-f]{32})?\.([0-9a-f]{32})?\.([0-9a-f]{32})?")
_DIGEST = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Tag:
    """The tag of a request or a chunk. Of a plain request all parts are empty.

    Attributes:
        salt: digest of the request's ``cache_salt`` as the engine gets it.
        tenant: digest of the tenant.
        adapter: digest of the adapter's content.
    """

    salt: str = ""
    tenant: str = ""
    adapter: str = ""

    def __str__(self) -> str:
        parts = (self.salt, self.tenant, self.adapter)
        return ".".join(parts) if any(parts) else ""


@dataclass(frozen=True)
class Selection:
    """The tags with these parts. A part that is ``None`` may be anything."""

    salt: str | None = None
    tenant: str | None = None
    adapter: str | None = None

    def __contains__(self, tag: Tag) -> bool:
        wanted = (self.salt, self.tenant, self.adapter)
        parts = (tag.salt, tag.tenant, tag.adapter)
        return all(want is None or want == part for want, part in zip(wanted, parts, strict=True))

    @property
    def has_plain(self) -> bool:
        """Whether chunks without a tag are among them."""
        return Tag() in self


def digest(text: str) -> str:
    """The digest of one part; empty for an empty text. The text may be a secret."""
    if not text:
        return ""
    canonical = json.dumps(text).encode("utf-8", "surrogatepass")
    return hashlib.sha256(canonical).hexdigest()[:32]


def is_digest(text: str) -> bool:
    """Whether a text may be a part of a tag."""
    return _DIGEST.fullmatch(text) is not None


def parse(text: str) -> Tag | None:
    """The tag of its text; ``None`` where the text is none, as of an earlier version's key."""
    if not text:
        return Tag()
    found = _TEXT.fullmatch(text)
    return Tag(*(part or "" for part in found.groups())) if found else None


def of_key(key: str) -> Tag | None:
    """The tag of a key; ``None`` for a tag of an earlier version."""
    return parse(key.partition(_MARK)[2])


def takes(selection: Selection, key: str) -> bool:
    """Whether a key is selected. Keys of an earlier version are where everything is selected."""
    tag = of_key(key)
    return selection == EVERYTHING if tag is None else tag in selection


EVERYTHING = Selection()
