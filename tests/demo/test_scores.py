from __future__ import annotations

import pytest
from scores import contains, exact_match


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "within"),
    [
        pytest.param("1935", "1935", True, True, id="equal"),
        pytest.param("  The Granite. ", "granite", True, True, id="case, article and full stop"),
        pytest.param("I don't know.", "I don't know", True, True, id="apostrophe"),
        pytest.param("I don\u2019t know", "I don't know", True, True, id="curly apostrophe"),
        pytest.param("It was built of red brick.", "red brick", False, True, id="in a sentence"),
        pytest.param("brick, red", "red brick", False, False, id="order counts"),
        pytest.param("19350", "1935", False, False, id="whole words only"),
        pytest.param("", "oak", False, False, id="no answer"),
        pytest.param("Theo", "eo", False, False, id="no article inside a word"),
    ],
)
def test_answers_are_scored_as_reading_comprehension_benchmarks_do(answer, expected, exact, within):
    assert exact_match(answer, expected) is exact
    assert contains(answer, expected) is within
