"""Download from the Hugging Face hub without minutes of retries and pages of warnings where there is no network."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence the hub's warnings; if its host has no address here, let it look into its cache only."""
    from huggingface_hub import constants

    settings: Any = constants
    logger = logging.getLogger("huggingface_hub")
    level, offline = logger.level, settings.HF_HUB_OFFLINE
    logger.setLevel(logging.ERROR)
    settings.HF_HUB_OFFLINE = offline or not _is_reachable(str(urlparse(settings.ENDPOINT).hostname))
    try:
        yield
    finally:
        logger.setLevel(level)
        settings.HF_HUB_OFFLINE = offline


def _is_reachable(host: str) -> bool:
    """Return whether a host has an address, which is quick to find out; behind a proxy, assume that it is reachable."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
