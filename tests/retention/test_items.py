from __future__ import annotations

import pytest

from selfaug.retention.items import Items, key
from selfaug.toolkit.errors import Refusal


@pytest.fixture
def file(tmp_path):
    return tmp_path / "lora.json"


def filled(file):
    items = Items(file)
    items.put("answers", "a", [{"answer": "x\n\u2028", "length": 1, "ended": True}] * 2)
    items.put("drift", "d", [{"kl": 0.5, "kl_by_position": [0.5]}] * 2)
    items.put("scores", "s", [{"answer": "yes", "f1": 1.0}])
    return items


def test_what_was_written_is_read_again(file):
    written = filled(file)
    read = Items(file)
    assert (read.keys, read.rows) == (written.keys, written.rows)
    assert read.has("drift", "d")
    assert not read.has("drift", "other")


def test_sections_that_do_not_hold_any_more_take_their_columns_with_them(file):
    items = filled(file)
    items.keep({"answers": "a", "drift": "other", "scores": "other"})
    assert items.rows == {
        "general": [{"answer": "x\n\u2028", "length": 1, "ended": True}] * 2,
        "task": [],
        "probes": [],
    }
    assert items.keys == {"answers": "a"}


def test_rows_of_another_number_replace_all(file):
    items = filled(file)
    items.put("drift", "d2", [{"kl": 0.1}])
    assert items.rows["general"] == [{"kl": 0.1}]
    assert not items.has("answers", "a")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": {}}', '{"keys": 1, "general": [], "task": []}'])
def test_a_file_that_is_not_ours_is_measured_anew(file, text):
    file.write_text(text, encoding="utf-8")
    assert Items(file).keys == {}


def test_a_key_tells_what_it_was_made_of(monkeypatch):
    assert key([1, 2], "x") == key([1, 2], "x")
    assert len({key([1, 2], "x"), key([1], [2], "x"), key([1, 2, "x"])}) == 3
    before = key("x")
    monkeypatch.setattr("selfaug.retention.items.FORMAT", 0)
    assert key("x") != before


def test_a_file_with_an_unknown_section_is_refused_by_name_and_stays_as_it_is(file):
    items = filled(file)
    items.keys["later"] = "l"
    items.write()
    before = file.read_bytes()
    with pytest.raises(Refusal, match=r"lora\.json has an unknown section[\s\S]*later"):
        Items(file)
    assert file.read_bytes() == before
