"""When the server cannot answer, and how many requests it takes."""

import time
from collections.abc import Callable

from kserve.errors import ServerNotReady


class UnavailableError(ServerNotReady):  # type: ignore[misc]  # KServe is untyped
    """The server cannot answer now: 503, UNAVAILABLE. The message names what is down."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = self.error_msg = reason


class BusyError(UnavailableError):
    """The server is at its limit: 429, UNAVAILABLE. The client may retry in a moment."""


class RateLimit:
    """A token bucket: at most `per_second` requests, with bursts of one second's worth. None means no limit."""

    def __init__(self, per_second: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self._clock = per_second, clock
        self._tokens, self._since = per_second or 0.0, clock()

    def check(self) -> None:
        """Count a request. Raises BusyError."""
        if self.per_second is None:
            return
        now = self._clock()
        self._tokens = min(max(self.per_second, 1.0), self._tokens + (now - self._since) * self.per_second)
        self._since = now
        if self._tokens < 1:
            raise BusyError(f"more than {self.per_second:g} requests a second; try again in a moment")
        self._tokens -= 1
