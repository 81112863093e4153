"""docs/families.md, the pins and the runtime's own list say the same of the families."""

from __future__ import annotations

import family_runs
from packaging.version import Version

from selfaug import unpatched
from selfaug_patcher import families, pins


def test_the_page_has_what_the_runs_gave():
    text = family_runs.PAGE.read_text()
    assert family_runs.page(text) == text


def test_every_family_held_in_the_newest_release_that_was_run():
    newest, run = next(iter(family_runs.results().items()))
    for target in families.MODELS:
        if Version(target.since) <= Version(newest):
            assert run["families"][target.family]["failed"] == {}, target.family
            assert run["families"][target.family]["checks"] > 30, target.family
            assert max(run["families"][target.family][key] for key in ("kl", "gradient")) < 1e-4, target.family


def test_no_family_is_pinned_in_a_release_in_which_it_was_not_tried():
    held = {
        (name, version)
        for version, run in family_runs.results().items()
        for name, result in run["families"].items()
        if not result["failed"]
    }
    for target in families.MODELS[1:]:
        assert pins.load().of(target.name), target.name
        for pin in pins.load().of(target.name):
            assert (target.family, pin.version) in held, pin


def test_the_runtime_knows_the_families_that_install_can_patch():
    assert set(unpatched.FAMILIES) == {target.family for target in families.MODELS}
