"""The committed table is what its form says; a table that was tampered with is refused as a whole."""

from __future__ import annotations

import io
import json
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from releases import TABLE

from selfaug_patcher import families, pins
from selfaug_patcher.errors import PatcherError

QWEN2, LORA = families.MODELS[0].name, families.LAYER.name
NEWEST = [pin.version for pin in TABLE.of(QWEN2) if not pin.note][-1]
TEXT = (TABLE.root / "pins.txt").read_text()


def test_a_pre_release_is_marked_as_one_and_nothing_else_is():
    assert all(("rc" in pin.version) == (pin.note == "pre-release") for pin in TABLE.pins if pin.note != "yanked")


def test_the_table_has_a_line_for_each_distinct_file_as_render_writes_it():
    assert pins.render(TABLE.pins) == TEXT
    rows = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
    assert len(rows) == len({pin.stock_sha256 for pin in TABLE.pins})


def test_three_hundred_and_thirty_four_files_fit_into_a_hundred_kilobytes():
    rows = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
    assert len(TEXT) / len(rows) * 334 < 100_000


def test_the_folder_has_the_table_and_the_seams_and_nothing_else():
    assert {path.name for path in TABLE.root.iterdir()} == {"pins.txt", "transformers.seam", "peft.seam"}


@pytest.mark.parametrize(
    ("versions", "text"),
    [
        pytest.param("1.0.0 1.0.1 1.0.2", "1.0.0-2", id="a range"),
        pytest.param("1.0.0 1.0.2", "1.0.0, 1.0.2", id="a gap"),
        pytest.param("1.0.0 1.1.0 1.1.1", "1.0.0, 1.1.0-1", id="another series"),
        pytest.param("1.0.0rc1 1.0.0 1.0.1", "1.0.0rc1, 1.0.0-1", id="a pre-release"),
        pytest.param("1.0.0 1.0.1! 1.0.2 1.0.3", "1.0.0, 1.0.1 (yanked), 1.0.2-3", id="a withdrawn release"),
        pytest.param("4.9 4.10 4.11", "4.9-11", id="two numbers"),
        pytest.param("1.0.9 1.0.10 1.0.10.post1", "1.0.9-10, 1.0.10.post1", id="a later build"),
        pytest.param("1 2 3", "1, 2, 3", id="one number"),
    ],
)
def test_releases_of_one_file_are_written_as_ranges_and_read_as_they_were(tmp_path, versions, text):
    rows = [pins.Pin(QWEN2, version.rstrip("!"), "1" * 64, "2" * 64, note(version)) for version in versions.split()]
    assert pins.releases_text(rows) == text
    root = shutil.copytree(TABLE.root, tmp_path / "patches")
    (root / "pins.txt").write_text(pins.render([*rows, *TABLE.of(LORA)]))
    assert pins.load(root).of(QWEN2) == tuple(rows)


def note(version: str) -> str:
    return "yanked" if version.endswith("!") else "pre-release" if "rc" in version else ""


def test_a_pin_is_found_by_content_whatever_the_version():
    pin = TABLE.by_version(QWEN2, "4.57.2")
    assert TABLE.by_stock(QWEN2, pin.stock_sha256) == pin
    assert TABLE.by_patched(QWEN2, pin.patched_sha256) == pin
    assert TABLE.by_stock(LORA, pin.stock_sha256) is None
    assert TABLE.by_stock(QWEN2, pin.patched_sha256) is None


@pytest.mark.parametrize(
    ("version", "pinned"),
    [("5.0.0rc1", "5.0.0rc1"), ("5.0.0.rc1", "5.0.0rc1"), ("4.40", "4.40.0"), ("5.10.3", None), ("what?", None)],
)
def test_a_version_is_the_same_however_it_is_written(version, pinned):
    found = TABLE.by_version(QWEN2, version)
    assert (found and found.version) == pinned


@pytest.mark.parametrize(
    ("version", "nearest"),
    [
        pytest.param("9999.0", NEWEST, id="newer than all"),
        pytest.param("4.30.0", "4.37.0", id="older than all"),
        pytest.param("5.10.3", "5.10.2", id="between two"),
        pytest.param("4.46.0", "4.45.2", id="yanked itself"),
        pytest.param("5.0.0.dev0", "4.57.6", id="a dev install"),
        pytest.param("5.1.0+vendor", "5.1.0", id="a vendor build"),
        pytest.param("unknown", NEWEST, id="unreadable"),
    ],
)
def test_the_nearest_release_is_a_final_one_not_above(version, nearest):
    assert TABLE.nearest(QWEN2, version).version == nearest


def test_the_table_is_printed_with_every_release():
    stream = io.StringIO()
    assert pins.print_table(stream=stream) == 0
    for pin in TABLE.pins:
        same = [other for other in TABLE.of(pin.target) if other.stock_sha256 == pin.stock_sha256]
        assert (
            f"  {pin.stock_sha256[:12]}  {pin.patched_sha256[:12]}  {pins.releases_text(same)}\n" in stream.getvalue()
        )
    assert stream.getvalue().count("yanked") == sum(pin.note == "yanked" for pin in TABLE.pins) >= 3


def test_the_table_is_one_json_object():
    stream = io.StringIO()
    assert pins.print_table(as_json=True, stream=stream) == 0
    rows = json.loads(stream.getvalue())["pins"]
    assert [pins.Pin(**row) for row in rows] == list(TABLE.pins)


@pytest.fixture
def root(tmp_path):
    """A copy of patches/ to tamper with."""
    return shutil.copytree(TABLE.root, tmp_path / "patches")


def refused(root) -> str:
    with pytest.raises(PatcherError) as caught:
        pins.load(root)
    return str(caught.value)


FIRST = next(line for line in TEXT.split("\n") if line.split()[:1] == [QWEN2])
LAST = next(line for line in reversed(TEXT.split("\n")) if line.split()[:1] == [QWEN2])


def field(number: int, new: str):
    """The first row with another text in one of its columns."""
    return lambda text: text.replace(FIRST, FIRST.replace(FIRST.split()[number], new))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(field(0, "transformers:other"), "no family of the name transformers:other", id="another family"),
        pytest.param(lambda text: text + "x\n", "not a family, its releases and two sha256", id="no row"),
        pytest.param(lambda text: text.replace(FIRST, FIRST[:-70]), "not a family, its releases", id="cut off"),
        pytest.param(
            lambda text: text.replace(FIRST, FIRST + "  more"), "not a family, its releases", id="a column more"
        ),
        pytest.param(field(1, "1" * 400), "is not a release", id="long version"),
        pytest.param(field(1, "../x"), "is not a release", id="version with a path"),
        pytest.param(field(1, "4.37.0 (good)"), "is not a release", id="another note"),
        pytest.param(field(1, "4.37.2-0"), "is no range of releases", id="a range that runs back"),
        pytest.param(field(1, "4.37.0-2 (yanked)"), "is no range of releases", id="a range with a note"),
        pytest.param(field(1, "4.37.0-99999"), "is not a release", id="a range without end"),
        pytest.param(field(1, "4.37.0,"), "is not a release", id="comma"),
        pytest.param(field(2, "A" * 64), "not a family, its releases", id="upper-case hash"),
        pytest.param(field(3, "a" * 63), "not a family, its releases", id="short hash"),
        pytest.param(lambda text: text + FIRST + "\n", "a release is there twice", id="twice"),
        pytest.param(field(1, "4.38.0"), "a release is there twice", id="a release in two rows"),
        pytest.param(field(2, LAST.split()[-2]), "one hash in two rows", id="one file, two results"),
        pytest.param(field(3, LAST.split()[-1]), "one hash in two rows", id="two files, one result"),
        pytest.param(field(3, FIRST.split()[2]), "one hash in two rows", id="no change"),
    ],
)
def test_a_table_that_was_tampered_with_is_refused(root, edit, words):
    text = edit(TEXT)
    assert text != TEXT
    (root / "pins.txt").write_text(text)
    assert words in refused(root)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "has no rows", id="empty"),
        pytest.param(b"\xff" * 40, "cannot be read", id="not text"),
        pytest.param(b"# " * (pins.MAX_BYTES + 1), "is too large", id="enormous"),
    ],
)
def test_what_is_no_table_is_refused(root, content, words):
    (root / "pins.txt").write_bytes(content)
    assert words in refused(root)


def test_all_problems_are_listed_with_their_lines_not_the_first(root):
    lines = TEXT.split("\n")
    lines[5], lines[-2] = "x", "y"
    (root / "pins.txt").write_text("\n".join(lines))
    (root / "peft.seam").unlink()
    text = refused(root)
    assert text.count("error[bad-pins]") == 3
    assert "pins.txt, line 6: " in text
    assert text.endswith("Nothing was changed.")


def test_a_link_is_not_followed(root, tmp_path):
    (root / "peft.seam").rename(tmp_path / "elsewhere.seam")
    (root / "peft.seam").symlink_to(tmp_path / "elsewhere.seam")
    assert "is not a plain file" in refused(root)


def test_a_loop_of_links_is_refused(root):
    (root / "peft.seam").unlink()
    (root / "peft.seam").symlink_to(root / "peft.seam")
    assert "error[bad-pins]" in refused(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_place_of_a_file_is_refused_not_waited_for(root):
    (root / "pins.txt").unlink()
    os.mkfifo(root / "pins.txt")
    assert "is not a plain file" in refused(root)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_table_is_read_or_refused(tmp_path_factory, data):
    """Whatever is cut out of the file or put into it, nothing but a PatcherError comes out."""
    root = tmp_path_factory.getbasetemp() / "damaged"
    if not root.exists():
        shutil.copytree(TABLE.root, root)
    start = data.draw(st.integers(0, len(TEXT)))
    text = TEXT[:start] + data.draw(st.text(max_size=20)) + TEXT[start + data.draw(st.integers(0, 200)) :]
    (root / "pins.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        table = pins.load(root)
    except PatcherError:
        return
    assert all(len(pin.stock_sha256) == len(pin.patched_sha256) == 64 for pin in table.pins)
