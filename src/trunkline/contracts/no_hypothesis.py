"""What stands in for the property tests of a suite where hypothesis is not installed."""

from __future__ import annotations

import pytest

__all__ = ("PropertyTests",)


class PropertyTests:
    """One skipped test, so that the report shows what did not run."""

    @pytest.mark.skip(reason="hypothesis is not installed: pip install 'trunkline[testing]'")
    def test_the_properties_of_any_data_hold(self) -> None:
        """Replaced by the property tests where hypothesis is installed."""
