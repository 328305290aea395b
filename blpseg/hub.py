"""Reach the model hub; fail quickly where it cannot be reached.

huggingface_hub retries a request for almost a minute before it reports that there is no network.
Here one short request decides: without an answer, only the local cache is used.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import get_session

_TIMEOUT = 3.0  # seconds that the hub has to answer


@contextmanager
def hub_if_reachable() -> Iterator[None]:
    """Restrict the model hub to its local cache within the block, if the hub cannot be reached.

    Raises:
        OSError: On leaving with an error of the hub: it cannot be reached, and the weights are not
            in the cache.
    """
    if constants.HF_HUB_OFFLINE or hub_answers():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{constants.ENDPOINT} cannot be reached, and the weights are not in the cache"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = False


def hub_answers() -> bool:
    """Send one request to the model hub; return whether any answer came in time."""
    answered = threading.Event()

    def ask() -> None:
        with suppress(Exception):  # whatever the reason: no answer
            get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
            answered.set()

    # A thread, as no timeout limits the lookup of a host name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT + 0.5)
    return answered.is_set()


def weights_cache() -> Path:
    """Return the folder in which huggingface_hub caches weights."""
    return Path(constants.HF_HUB_CACHE)
