"""Of every family and every release since the family's first: the seam has its place, and taken out it gives stock."""

from __future__ import annotations

import zipfile

import pytest
from packaging.version import Version
from releases import PROVE_ALL, TABLE

from selfaug_patcher import families
from selfaug_patcher.maintain import wheels

RELEASES = [pin.version for pin in TABLE.of(families.MODELS[0].name)]
_PLACED: set[tuple[str, bytes]] = set()  # most releases have the file of the one before


@pytest.mark.xdist_group("families of every release")
@pytest.mark.parametrize("version", RELEASES)
def test_each_family_of_a_release_has_one_place_for_the_seam(version):
    wheel = wheels.fetch("transformers", version) if PROVE_ALL else wheels.find("transformers", version)
    if wheel is None:
        pytest.skip(f"no wheel of transformers {version} in {wheels.cache()}")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        for target in families.MODELS:
            assert (target.path in inside) == (Version(target.since) <= Version(version)), target.name
            if target.path in inside and (target.name, archive.read(target.path)) not in _PLACED:
                stock = archive.read(target.path)
                assert TABLE.stock(target, TABLE.patched(target, stock)) == stock
                _PLACED.add((target.name, stock))
