"""Reads the server's certificate again when its files change.

The contents of the files are compared. Kubernetes mounts a Secret as a folder of links, and
replaces one link above the files when the Secret changes: a watch of the files themselves, as
KServe's and vLLM's servers have it, does not see that.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

logger = logging.getLogger(__name__)

_PERIOD_SECONDS = 2.0


@contextlib.asynccontextmanager
async def refreshed(
    context: ssl.SSLContext,
    cert_file: Path,
    key_file: Path,
    period: float = _PERIOD_SECONDS,
) -> AsyncIterator[None]:
    """Load changed files into the context, until the end of the block.

    Args:
        context: has the certificate already.
        cert_file: PEM file of the certificate.
        key_file: PEM file of its key.
        period: the seconds between two looks at the files.
    """
    task = asyncio.create_task(_refresh(context, cert_file, key_file, period))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _refresh(context: ssl.SSLContext, cert_file: Path, key_file: Path, period: float) -> None:
    loaded = tried = await asyncio.to_thread(_digest, cert_file, key_file)
    while True:
        await asyncio.sleep(period)
        found = await asyncio.to_thread(_digest, cert_file, key_file)
        if found in ("", loaded, tried):
            continue
        tried = found
        try:
            # A certificate without its key would take the key out of the context in use.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file)
            context.load_cert_chain(cert_file, key_file)
        except (OSError, ssl.SSLError) as error:
            # One of the files may be a new one already, and the other one not yet.
            logger.warning("The changed certificate %s cannot be used: %s", cert_file, error)
            continue
        loaded = found
        logger.info("The certificate %s has changed and is in use", cert_file)


def _digest(*files: Path) -> str:
    """The digest of the contents; empty when a file cannot be read."""
    digest = hashlib.sha256()
    try:
        for file in files:
            content = file.read_bytes()
            digest.update(b"%d:" % len(content) + content)
    except OSError:
        return ""
    return digest.hexdigest()
