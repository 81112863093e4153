"""A made-up file in the format of SQuAD 2.0 becomes rows that the study and the retention tool read."""

from __future__ import annotations

import json
import random
import re
import sys

import pytest
import questions
import squad_rag

from Code.retention import prompts

TOPICS = "harbour bridge library tower market garden theatre school".split()
COLOURS = "red blue green white black grey pink brown".split()


def official(articles=8, paragraphs=6):
    """Each article's paragraphs tell when a thing was built, and in which colour: a question each; and one question
    that nothing answers.
    """
    data = []
    for number in range(articles):
        told = []
        for at in range(paragraphs):
            thing, colour = f"{TOPICS[at]} of Town{number}", COLOURS[(at + number) % 8]
            context = (
                f"The  {thing} stands by the road. It was built in {1500 + 10 * number + at}.\nIt is painted {colour}."
            )
            asked = [
                (f"When was the {thing} built?", [f"{1500 + 10 * number + at}", f"in {1500 + 10 * number + at}"] * 2),
                (f"What colour is the {thing}?", [colour, f"painted {colour}", colour]),
                (f"Who built the {thing}?", []),
            ]
            qas = [
                {"id": f"{number}-{at}-{n}", "question": text, "is_impossible": not answers,
                 "answers": [{"text": one, "answer_start": context.find(one)} for one in answers]}
                for n, (text, answers) in enumerate(asked)
            ]  # fmt: skip
            told.append({"context": context, "qas": qas})
        data.append({"title": f"Town_{number}", "paragraphs": told})
    return {"version": "v2.0", "data": data}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "dev-v2.0.json"
    path.write_text(json.dumps(official()), encoding="utf-8")
    return path


@pytest.fixture
def made(file, tmp_path, monkeypatch):
    def make(*options):
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["squad_rag.py", str(file), "--out", str(out), *options])
        squad_rag.main()
        parts = [(out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in ("train", "test")]
        return [[json.loads(line) for line in lines] for lines in parts]

    return make


def passages(row):
    return re.findall(r"^\[\d\] ([^:]+): (.*)$", row["prompt"], flags=re.MULTILINE)


def test_a_row_has_three_passages_of_one_article_and_the_answer_in_one_of_them(made):
    train, test = made("--train", "60", "--test", "20")
    assert (len(train), len(test)) == (60, 20)
    for row in [*train, *test]:
        assert [title for title, _ in passages(row)] == [row["cluster"]] * 3
        having = [text for _, text in passages(row) if any(f" {answer}" in text for answer in row["answer"])]
        assert len(having) == row["answerable"]
        if not row["answerable"]:
            assert row["answer"] == ["I don't know"]
    assert len({row["prompt"] for row in [*train, *test]}) == 80


def test_all_gold_answers_are_accepted_and_the_most_frequent_is_learned(made):
    train, _ = made("--train", "60", "--test", "20")
    row = next(row for row in train if row["answerable"] and "What colour" in row["prompt"])
    assert row["answer"] == [row["answer"][0], f"painted {row['answer'][0]}"]
    assert questions.messages(row)[1]["content"] == row["answer"][0]


def test_fifteen_in_a_hundred_have_no_answer_and_a_third_of_these_are_squads_own(made):
    train, test = made("--train", "60", "--test", "20")
    for rows in (train, test):
        nothing = [row for row in rows if not row["answerable"]]
        assert len(nothing) == round(0.15 * len(rows))
        own = sum("Who built" in row["prompt"] for row in nothing)
        assert own == round(len(nothing) / 3)


def test_training_and_test_share_no_article_and_a_seed_repeats(made):
    train, test = made("--train", "60", "--test", "20")
    assert not {row["cluster"] for row in train} & {row["cluster"] for row in test}
    assert {row["cluster"] for row in test} == {row["cluster"] for row in made("--train", "60", "--test", "20")[1]}
    assert made("--train", "60", "--test", "20") == [train, test]
    assert made("--train", "60", "--test", "20", "--seed", "1") != [train, test]


def test_the_study_and_the_retention_tool_read_the_rows(made, tmp_path):
    train, test = made("--train", "60", "--test", "20")
    files = tmp_path / "out" / "train.jsonl", tmp_path / "out" / "test.jsonl"
    training, held_out = questions.of_files(*files, 60, 20, 0)
    assert len(training) == len(train)
    assert sorted(row["prompt"] for row in held_out) == sorted(row["prompt"] for row in test)
    assert {prompt.accepted for prompt in prompts.task(files[1])} == {tuple(row["answer"]) for row in test}


def test_the_nearest_passages_by_bm25_come_first():
    article = squad_rag.Article("T", ("a b c", "river bridge", "bridge bridge river stone", "d e f g"))
    assert article.nearest("Which stone is in the river?")[0] == 2
    assert set(article.nearest("Which river?")[:2]) == {1, 2}
    assert article.nearest("bridge")[0] in (1, 2)


def test_a_long_passage_is_cut_and_keeps_its_answer():
    passage = " ".join(f"w{n}" for n in range(50))
    assert squad_rag.cut(passage, (), 10) == " ".join(f"w{n}" for n in range(10))
    assert squad_rag.cut(passage, ("w3",), 10) == " ".join(f"w{n}" for n in range(10))
    assert squad_rag.cut(passage, ("w30 w31",), 10) == " ".join(f"w{n}" for n in range(22, 32))
    question = squad_rag.Question("Which w?", ("w30",), 0, squad_rag.Article("T", (passage, "x y", "z x", "y z")))
    row = squad_rag.row(question, False, 10, random.Random(0))
    assert all(len(text.split()) <= 10 for _, text in passages(row))
    assert any("w30" in text.split() for _, text in passages(row))


def test_too_few_questions_are_an_error_that_says_so_and_nothing_is_written(made, file, tmp_path):
    with pytest.raises(SystemExit, match=r"ask for fewer, or give more files"):
        made("--train", "60", "--test", "500")
    assert not (tmp_path / "out").exists()
    file.write_text(json.dumps(official(articles=1)), encoding="utf-8")
    with pytest.raises(SystemExit, match="two or more with over 3 paragraphs"):
        made()


def changed(place, value):
    """The official content as JSON, with another value at a place."""
    whole = official()
    at = whole
    for step in place[:-1]:
        at = at[step]
    if value is None:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return json.dumps(whole)


PARAGRAPH = ("data", 3, "paragraphs", 2)
QUESTION = (*PARAGRAPH, "qas", 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", ":1: expected JSON"),
        ("[" * 100_000, "nested deeper"),
        ("[]", "the file: an object"),
        ('{"data": {}}', "data: a list"),
        (changed(("data", 3), 7), r"data\[3\]: an object"),
        (changed(("data", 3, "title"), 7), r"data\[3\]\.title: a text"),
        (changed(("data", 3, "paragraphs"), None), r"data\[3\]\.paragraphs: a list\n.*nothing"),
        (changed(PARAGRAPH, "x"), r"data\[3\]\.paragraphs\[2\]: an object"),
        (changed((*PARAGRAPH, "context"), 7), r"paragraphs\[2\]\.context: a text"),
        (changed((*PARAGRAPH, "context"), " \n"), r"paragraphs\[2\]\.context: a text with a word in it"),
        (changed((*PARAGRAPH, "qas"), "x"), r"paragraphs\[2\]\.qas: a list"),
        (changed(QUESTION, []), r"data\[3\]\.paragraphs\[2\]\.qas\[1\]: an object"),
        (changed((*QUESTION, "is_impossible"), 0), r"qas\[1\]\.is_impossible: true or false"),
        (changed((*QUESTION, "question"), 7), r"qas\[1\]\.question: a text"),
        (changed((*QUESTION, "answers"), None), r"qas\[1\]\.answers: a list"),
        (changed((*QUESTION, "answers", 0), "red"), r"qas\[1\]\.answers\[0\]: an object"),
        (changed((*QUESTION, "answers", 0, "text"), ""), r"qas\[1\]\.answers\[0\]\.text: a text with a word"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_place(made, file, content, said):
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match=rf"(?s)dev-v2\.0\.json.*{said}"):
        made()


@pytest.mark.parametrize(
    "option",
    [
        "--train=0",
        "--train=-1",
        "--test=0",
        "--words=0",
        "--test-articles=0",
        "--test-articles=1",
        "--test-articles=nan",
    ],
)
def test_an_option_without_sense_is_refused(made, capsys, option):
    with pytest.raises(SystemExit):
        made(*option.split("="))
    assert f"argument {option.split('=')[0]}: a" in capsys.readouterr().err


def test_the_output_cannot_be_a_file(made, capsys, tmp_path):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit):
        made()
    assert "is no folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_articles_of_each_part_remain_and_passages_without_words_can_be_ranked(made):
    assert [len(rows) for rows in made("--train", "10", "--test", "20", "--test-articles", "0.99")] == [10, 20]
    assert squad_rag.Article("T", ("-", "…", "?", "!")).nearest("What?") == [0, 1, 2, 3]
