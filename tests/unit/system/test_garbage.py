"""Test that the collector of garbage works again after it was put off, whatever happened."""

from __future__ import annotations

import gc

import pytest

from roialign_cli.system.garbage import put_off


def fail_where_it_is_put_off() -> None:
    with put_off():
        assert not gc.isenabled()
        _ = 1 / 0


@pytest.mark.parametrize("enabled", [True, False])
def test_put_off_and_as_before(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError):
            fail_where_it_is_put_off()
        assert gc.isenabled() == enabled
    finally:
        gc.unfreeze()
        gc.enable()
