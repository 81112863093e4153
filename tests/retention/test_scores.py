from __future__ import annotations

import pytest

from selfaug.retention.scores import contains, exact_match, f1, score


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
        pytest.param("", "A", False, False, id="no answer where an article is expected"),
        pytest.param("B", "A", False, False, id="another choice"),
        pytest.param("a.", "A", True, True, id="the choice"),
        pytest.param("It is (A).", "A", False, True, id="the choice in a sentence"),
        pytest.param("", "+", False, False, id="no answer where a sign is expected"),
        pytest.param("+", "+", True, True, id="a sign"),
    ],
)
def test_answers_are_scored_as_reading_comprehension_benchmarks_do(answer, expected, exact, within):
    assert exact_match(answer, expected) is exact
    assert contains(answer, expected) is within


@pytest.mark.parametrize(
    ("answer", "expected", "found"),
    [
        pytest.param("red brick", "brick", 2 / 3, id="precision 1/2, recall 1"),
        pytest.param("the big big dog", "a big dog", 4 / 5, id="repeated words count once each"),
        pytest.param("oak", "elm", 0, id="nothing shared"),
        pytest.param("", "elm", 0, id="no answer"),
        pytest.param("", "A", 0, id="no answer to a choice"),
        pytest.param("B", "A", 0, id="another choice"),
        pytest.param("A.", "A", 1, id="the choice"),
    ],
)
def test_f1_is_the_overlap_of_words(answer, expected, found):
    assert f1(answer, expected) == pytest.approx(found)


def test_the_accepted_answer_that_suits_best_counts():
    assert score("New York City", ["NYC", "New York"]) == {"exact_match": 0, "contains": 1, "f1": pytest.approx(0.8)}
    assert score("New York", ["NYC", "New York"]) == {"exact_match": 1, "contains": 1, "f1": 1}
    assert score("nyc", ["NYC", "New York"]) == {"exact_match": 1, "contains": 1, "f1": 1}
