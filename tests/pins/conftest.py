"""Offline, each pin whose stock file is at hand is proved, and the summary says how many were not.

With SELFAUG_PROVE_ALL=1 missing wheels are fetched first, and one that cannot be had is an error.
"""

from __future__ import annotations

import sys

import pytest
from releases import PROVE_ALL, TABLE, TARGETS, stock_file

from selfaug_patcher import lock
from selfaug_patcher.maintain import wheels


@pytest.fixture(scope="session")
def all_wheels(request):
    """Where SELFAUG_PROVE_ALL asks for it, no wheel is missing from the cache. Of several processes, one fetches."""
    if PROVE_ALL:
        wheels.cache().mkdir(parents=True, exist_ok=True)
        shown = request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled()
        with shown, lock.hold(wheels.cache() / ".fetching", wait=3600):
            wheels.fetch_all([(TARGETS[pin.target].package, pin.version) for pin in TABLE.pins], sys.__stderr__)


@pytest.fixture
def stock(all_wheels, record_property):
    """A function from a pin to its stock file; skips the test where there is none."""

    def of(pin):
        data = stock_file(pin)
        if data is None:
            assert not PROVE_ALL, f"no wheel of {pin.target} {pin.version}"
            record_property("not proved", f"{pin.target} {pin.version}")
            pytest.skip("no wheel in the cache")
        record_property("proved", f"{pin.target} {pin.version}")
        return data

    return of
