"""The committed table and patches agree with each other; a table that was tampered with is refused as a whole."""

from __future__ import annotations

import io
import json
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from releases import TABLE

from selfaug_patcher import pins
from selfaug_patcher.errors import PatcherError

QWEN2, LORA = (target.name for target in pins.TARGETS)
NEWEST = [pin.version for pin in TABLE.of(QWEN2) if not pin.note][-1]
TEXT = (TABLE.root / "pins.json").read_text()


def test_a_pre_release_is_marked_as_one_and_nothing_else_is():
    assert all(("rc" in pin.version) == (pin.note == "pre-release") for pin in TABLE.pins if pin.note != "yanked")


def test_the_file_is_written_as_render_writes_it():
    assert pins.render(TABLE.pins) == TEXT


def test_no_patch_file_is_without_a_pin():
    on_disk = {path.relative_to(TABLE.root).as_posix() for path in TABLE.root.rglob("*") if path.is_file()}
    assert on_disk == {"pins.json", *(pin.patch for pin in TABLE.pins)}


@pytest.mark.parametrize("name", sorted(TABLE.patches))
def test_the_headers_agree_with_the_pins(name):
    patch = TABLE.patches[name]
    first = next(pin for pin in TABLE.pins if pin.patch == name)
    assert list(patch.headers) == ["Subject", "Target", "Applies-To", "Calls", "Source", "Forwarded"]
    assert patch.headers["Target"] == patch.target
    assert patch.headers["Applies-To"] == TABLE.applies_to(name)
    assert patch.headers["Source"] == "arXiv:2509.03934"
    assert name.endswith(f"-{first.version}.patch")


@pytest.mark.parametrize("name", sorted(TABLE.patches))
def test_every_added_line_says_whose_it_is_and_how_to_undo_it(name):
    added = [set(hunk.after) - set(hunk.before) for hunk in TABLE.patches[name].hunks]
    assert all(any(b"python -m selfaug_patcher revert" in line for line in lines) for lines in added)


def test_a_pin_is_found_by_content_whatever_the_version():
    pin = TABLE.by_version(QWEN2, "4.57.2")
    assert TABLE.by_stock(QWEN2, pin.stock_sha256) == pin
    assert TABLE.by_patched(QWEN2, pin.patched_sha256) == pin
    assert TABLE.by_stock(LORA, pin.stock_sha256) is None
    assert TABLE.by_stock(QWEN2, pin.patched_sha256) is None
    assert TABLE.patch(pin).name == pin.patch


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
    words = stream.getvalue().split()
    assert all(pin.version in words for pin in TABLE.pins)
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


def first(change: str, value: object):
    def edit(data):
        data[QWEN2][0][change] = value

    return edit


def same_stock(data):
    data[QWEN2][0]["stock_sha256"] = data[QWEN2][-1]["stock_sha256"]


def same_patched(data):
    data[QWEN2][0]["patched_sha256"] = data[QWEN2][-1]["patched_sha256"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(lambda data: data.update(format=2), "has a format that this SelfAug does not read", id="format"),
        pytest.param(lambda data: data.pop(LORA), "is not a pin table", id="no peft"),
        pytest.param(lambda data: data.update(extra=[]), "is not a pin table", id="another target"),
        pytest.param(lambda data: data.update({LORA: {}}), "has no rows for peft:lora", id="no list"),
        pytest.param(lambda data: data.update({LORA: []}), "has no rows for peft:lora", id="no rows"),
        pytest.param(lambda data: data[LORA].append(1), "another form in a row for peft:lora", id="no object"),
        pytest.param(lambda data: data[LORA][0].pop("note"), "another form in a row", id="missing field"),
        pytest.param(first("more", ""), "another form in a row", id="extra field"),
        pytest.param(first("version", 5), "another form in a row", id="number for a text"),
        pytest.param(first("version", "1" * 400), "bad version", id="long version"),
        pytest.param(first("version", "../x"), "bad version", id="version with a path"),
        pytest.param(first("note", "fine"), "bad note", id="note"),
        pytest.param(first("stock_sha256", "A" * 64), "bad stock_sha256", id="upper-case hash"),
        pytest.param(first("patched_sha256", ""), "bad patched_sha256", id="no hash"),
        pytest.param(first("patch", "../../x-1.patch"), "bad patch", id="patch outside"),
        pytest.param(first("patch", "/etc/x-1.patch"), "bad patch", id="absolute patch"),
        pytest.param(first("patch", "x-9.9.9.patch"), "cannot be read", id="no such patch"),
        pytest.param(lambda data: data[QWEN2].reverse(), "out of order or twice", id="order"),
        pytest.param(lambda data: data[QWEN2].insert(0, data[QWEN2][0]), "out of order or twice", id="twice"),
        pytest.param(same_stock, "one stock file, two outcomes", id="one file, two results"),
        pytest.param(same_patched, "two stock files, one outcome", id="two files, one result"),
        pytest.param(first("patched_sha256", TABLE.pins[0].stock_sha256), "both stock and patched", id="no change"),
    ],
)
def test_a_table_that_was_tampered_with_is_refused(root, edit, words):
    data = json.loads(TEXT)
    edit(data)
    (root / "pins.json").write_text(json.dumps(data))
    assert words in refused(root)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(TEXT[:-40].encode(), "is not JSON", id="truncated"),
        pytest.param(b"", "is not JSON", id="empty"),
        pytest.param(b"\xff" * 40, "is not JSON", id="not text"),
        pytest.param(b"[" * 200_000, "is not JSON", id="nested without end"),
        pytest.param(b'{"format": 1, "format": 1}', "a key is there twice", id="key twice"),
        pytest.param(b"[]", "is not a pin table", id="list"),
        pytest.param(b" " * (pins.MAX_TABLE_BYTES + 1), "is too large", id="enormous"),
    ],
)
def test_what_is_no_table_is_refused(root, content, words):
    (root / "pins.json").write_bytes(content)
    assert words in refused(root)


def test_all_problems_are_listed_not_the_first(root):
    data = json.loads(TEXT)
    data[QWEN2][3]["note"] = "x"
    data[LORA][2]["version"] = "y"
    (root / "pins.json").write_text(json.dumps(data))
    (root / TABLE.pins[-1].patch).unlink()
    text = refused(root)
    assert text.count("error[bad-pins]") == 3
    assert text.endswith("Nothing was changed.")


def test_a_link_is_not_followed(root, tmp_path):
    patch = root / TABLE.pins[0].patch
    patch.rename(tmp_path / "elsewhere.patch")
    patch.symlink_to(tmp_path / "elsewhere.patch")
    assert "is not a plain file" in refused(root)


def test_a_linked_folder_is_not_followed(root, tmp_path):
    (root / "peft").rename(tmp_path / "elsewhere")
    (root / "peft").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert "is not a plain file" in refused(root)


def test_a_loop_of_links_is_refused(root):
    patch = root / TABLE.pins[0].patch
    patch.unlink()
    patch.symlink_to(patch)
    assert "error[bad-pins]" in refused(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_place_of_a_patch_is_refused_not_waited_for(root):
    patch = root / TABLE.pins[0].patch
    patch.unlink()
    os.mkfifo(patch)
    assert "is not a plain file" in refused(root)


def test_a_patch_for_another_file_is_refused(root):
    patch = root / TABLE.pins[0].patch
    patch.write_text(patch.read_text().replace("modeling_qwen2.py", "configuration_qwen2.py"))
    assert "is not a patch for transformers:qwen2" in refused(root)


def test_a_patch_that_is_not_text_is_refused(root):
    (root / TABLE.pins[0].patch).write_bytes(b"\xff\xfe\n")
    assert "is not text" in refused(root)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_table_is_read_or_refused(tmp_path_factory, data):
    """Whatever is cut out of the file or put into it, nothing but a PatcherError comes out."""
    root = tmp_path_factory.getbasetemp() / "damaged"
    if not root.exists():
        shutil.copytree(TABLE.root, root)
    start = data.draw(st.integers(0, len(TEXT)))
    text = TEXT[:start] + data.draw(st.text(max_size=20)) + TEXT[start + data.draw(st.integers(0, 200)) :]
    (root / "pins.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        table = pins.load(root)
    except PatcherError:
        return
    assert all("/" not in pin.patch.split("/", 1)[1] for pin in table.pins)
