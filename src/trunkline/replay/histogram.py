"""Quantiles of a stream of numbers in constant memory."""

from __future__ import annotations

import math

__all__ = ("Histogram",)


class Histogram:
    """Counts of whole numbers, in buckets less than 1 % wide: a few kilobytes for any log."""

    def __init__(self) -> None:
        self._buckets = [0] * (58 << 7)
        self._count = 0
        self._largest = 0

    def add(self, number: int) -> None:
        # A bucket is chosen by the eight highest bits; numbers up to 255 have one each.
        shift = max(number.bit_length() - 8, 0)
        self._buckets[(shift << 7) + (number >> shift)] += 1
        self._count += 1
        if number > self._largest:
            self._largest = number

    def quantile(self, part: float) -> int | None:
        """The number that `part` of all numbers do not exceed; `None` without numbers."""
        remaining = math.ceil(part * self._count)
        for index, count in enumerate(self._buckets):
            remaining -= count
            if count and remaining <= 0:
                shift = max((index >> 7) - 1, 0)
                upper_end = ((index - (shift << 7)) + 1 << shift) - 1
                return min(upper_end, self._largest)
        return None
