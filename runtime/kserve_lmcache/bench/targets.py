"""The endpoints that are measured."""

from __future__ import annotations

from dataclasses import dataclass

from kserve_lmcache.errors import UsageError
from kserve_lmcache.redaction import redact_urls


@dataclass(frozen=True)
class Target:
    """An endpoint: one server, or several replicas that share a store.

    Attributes:
        label: its name in the report.
        urls: of its replicas.
    """

    label: str
    urls: tuple[str, ...]

    def shown(self) -> dict[str, object]:
        """As the log has it, without secrets."""
        return {"label": self.label, "urls": [redact_urls(url) for url in self.urls]}


def parse(text: str) -> Target:
    """``[LABEL=]URL[,URL…]``; several URLs are replicas that share a store.

    Raises:
        UsageError: there is no URL in it.
    """
    label, separator, rest = text.partition("=")
    if not separator or "://" in label:
        label, rest = "", text
    urls = tuple(url.strip() for url in rest.split(",") if url.strip())
    if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
        raise UsageError(f"{redact_urls(text)!r} is not [LABEL=]http://HOST:PORT[,http://…]")
    return Target(label or redact_urls(urls[0].partition("://")[2]), urls)


def parse_all(texts: list[str]) -> list[Target]:
    """Of all of them.

    Raises:
        UsageError: one is no endpoint, or two have one label.
    """
    targets = [parse(text) for text in texts]
    labels = [target.label for target in targets]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"two endpoints are called {label}; give each a name, NAME=URL")
    return targets
