"""How often one caller may ask: a bucket of tokens each, that fills again at a steady rate."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

#: Callers that are remembered; the one that has asked for nothing for longest is forgotten first.
MOST_CALLERS = 10_000


class Buckets:
    """``rate`` requests a minute of each caller; as many at once, if it has not asked for a minute."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic, most: int = MOST_CALLERS) -> None:
        self.rate, self._clock, self._most = rate, clock, most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, caller: str) -> float:
        """Take a token and return 0, or the seconds until there is one."""
        now = self._clock()
        left, since = self._left.pop(caller, (float(self.rate), now))
        left = min(self.rate, left + (now - since) * self.rate / 60)
        short = 1 - left
        self._left[caller] = (left if short > 0 else left - 1, now)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return short * 60 / self.rate if short > 0 else 0.0
