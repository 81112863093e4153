from __future__ import annotations

import pytest

from selfaug.retention.form import has_list, one_word


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("Tips:\n- walk\n- swim", True, id="dashes"),
        pytest.param("1. walk\n2. swim", True, id="numbers"),
        pytest.param("(a) walk\n(b) swim", True, id="letters in brackets"),
        pytest.param("\u2022 walk\n\u2022 swim", True, id="bullets"),
        pytest.param("  * walk\n\n  * swim", True, id="indented, with a line between"),
        pytest.param("1. walk", False, id="a single item"),
        pytest.param("It was in 1990. A walk - and 2. a swim.", False, id="within a line"),
        pytest.param("-5 degrees\n-6 degrees", False, id="negative numbers"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_a_list_is_two_lines_with_a_bullet_number_or_letter(text, found):
    assert has_list(text) is found


@pytest.mark.parametrize(("text", "found"), [("Oslo.", True), (" \n", True), ("in Oslo", False)])
def test_one_word_or_none_is_one_word(text, found):
    assert one_word(text) is found
