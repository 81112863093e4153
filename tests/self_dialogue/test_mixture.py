"""`mix`: the asked share, every row once, the same order for the same seed, and nothing written half."""

from __future__ import annotations

import importlib.util
import json
import tracemalloc
from pathlib import Path

import pytest
import tiny_chat

from selfaug.self_dialogue import cli, manifest, mixture
from selfaug.toolkit.errors import Refusal
from selfaug.toolkit.files import dumps
from selfaug.toolkit.rows import RowWriter, rows


def chat(question, answer="So it is, I think."):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


TASK = [{**chat(f"task {i}", "word " * 12), "id": i} for i in range(30)]
TALK = [chat(f"talk {i}") for i in range(20)]


@pytest.fixture
def files(jsonl, tmp_path):
    return jsonl("task.jsonl", TASK), jsonl("talk.jsonl", TALK), tmp_path / "mixed.jsonl"


def run(task, talk, out, *options):
    return cli.main(["mix", "--task", str(task), "--dialogues", str(talk), "--out", str(out), *options])


def left(folder: Path):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("ratio", "talked"), [("0.25", 10), ("0.1", 3), ("0.4", 20)])
def test_the_share_is_of_the_whole_and_each_row_is_there_once(files, read, ratio, talked):
    assert run(*files, "--ratio", ratio) == 0
    mixed = read(files[2])
    assert sorted(map(json.dumps, mixed)) == sorted(map(json.dumps, TASK + TALK[:talked]))
    facts = manifest.read(files[2])
    assert facts["task"]["examples"] == 30
    assert facts["dialogues"]["examples"] == talked
    assert facts["share"]["examples"] == pytest.approx(talked / (30 + talked))


def test_without_a_ratio_all_dialogues_are_taken(files, read):
    assert run(*files) == 0
    assert len(read(files[2])) == 50


def test_the_order_follows_from_the_seed(files, tmp_path):
    outs = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for out, seed in zip(outs, "001"):
        assert run(*files[:2], out, "--seed", seed) == 0
    first, again, other = (out.read_bytes() for out in outs)
    assert first == again != other
    assert first.splitlines() != sorted(first.splitlines())


@pytest.mark.parametrize("buckets", [1, 7])
def test_every_order_is_equally_likely(monkeypatch, jsonl, tmp_path, buckets):
    """Where row 0 of 10 ends up, over 200 seeds: 20 per place, give or take four standard deviations."""
    task, talk = jsonl("task.jsonl", TASK[:7]), jsonl("talk.jsonl", TALK[:3])
    size = task.stat().st_size + talk.stat().st_size
    monkeypatch.setattr(mixture, "BUCKET_BYTES", size // buckets + 1)
    places = [0] * 10
    for seed in range(200):
        mixture.mix([task], talk, tmp_path / "out.jsonl", seed=seed)
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        places[[json.loads(line).get("id") for line in lines].index(0)] += 1
    assert all(abs(count - 20) < 17 for count in places), places


class Words:
    """A tokenizer in one line: a token a word."""

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [text.split() for text in texts]}


def test_a_ratio_by_tokens_counts_what_the_assistant_says(files, read):
    found = mixture.mix([files[0]], files[1], files[2], ratio=0.2, by="tokens", tokenizer=Words())
    assert found.task.trained_tokens == 30 * 12
    assert found.dialogues.trained_tokens == 90  # 18 dialogues of 5 words: a fifth of 450
    assert found.dialogues.examples == 18
    assert found.facts()["share"] == {"examples": 18 / 48, "trained_tokens": 0.2, "tokens": pytest.approx(126 / 546)}


def test_a_file_is_not_replaced_because_a_log_is_beside_it(files, capsys):
    files[2].write_text("mine\n")
    files[2].with_name("mixed.jsonl.log").write_text("of something else\n")
    assert run(*files) == 1
    assert "error[exists]" in capsys.readouterr().err
    assert files[2].read_text() == "mine\n"


def test_prompts_of_a_model_without_a_template_are_rendered_with_the_given_one(files, tmp_path, read, capsys):
    tiny_chat.tokenizer(template=None).save_pretrained(tmp_path / "base")
    render = ["--render", "--format", "prompt-completion", "--tokenizer", str(tmp_path / "base")]
    assert run(*files, *render) == 1
    assert "do:       --template plain" in capsys.readouterr().err
    assert run(*files, *render, "--template", "plain") == 0
    assert {"prompt": "User: talk 0\n\nAssistant:", "completion": "So it is, I think."} in read(files[2])


def test_tokens_need_a_tokenizer(files, capsys):
    assert run(*files, "--ratio", "0.2", "--by", "tokens") == 1
    assert "do:       --tokenizer" in capsys.readouterr().err


def test_too_few_dialogues_are_refused_with_both_numbers(files, capsys, tmp_path):
    before = left(tmp_path)
    assert run(*files, "--ratio", "0.5") == 1
    told = capsys.readouterr().err
    assert "expected: 30 dialogues" in told
    assert "found:    20" in told
    assert left(tmp_path) == before


@pytest.mark.parametrize("format", ["alpaca", "sharegpt", "prompt-completion", "prompt-completion-chat"])
def test_dialogues_take_the_form_of_the_task(jsonl, files, tmp_path, format):
    from selfaug.self_dialogue import formats

    task = jsonl("other.jsonl", [formats.row(row["messages"], format) for row in TASK])
    assert run(task, *files[1:]) == 0
    mixed = [row for _, row in rows(files[2])]
    assert {formats.detect(row) for row in mixed} == {format}
    found = [formats.messages(row, format) for row in mixed]
    assert sorted(map(str, found)) == sorted(str(row["messages"]) for row in TASK + TALK)


def test_every_malformed_row_is_reported_by_file_and_line_and_nothing_is_written(files, tmp_path, capsys):
    task, talk, out = files
    lines = task.read_text().splitlines()
    lines[4], lines[9] = '{"messages": []}', '{"text": "x"}'
    task.write_text("\n".join(lines) + "\n")
    before = left(tmp_path)
    assert run(task, talk, out) == 1
    told = capsys.readouterr().err
    assert f"{task}:5: messages is not a list" in told
    assert f"{task}:10: columns text" in told
    assert left(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "line"),
    [
        pytest.param('{"a": 1}\n{"a": \n', 2, id="cut-short"),
        pytest.param('{"a": 1}\n\n[1]\n', 3, id="no-object"),
        pytest.param(b'{"a": "\xff"}\n', 1, id="no-utf-8"),
    ],
)
def test_a_line_that_is_no_json_object_is_reported_with_its_number(tmp_path, content, line):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(Refusal, match=f"bad.jsonl:{line}: "):
        list(rows(file))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_a_json_list_is_read_row_by_row_with_its_lines(tmp_path, monkeypatch, block):
    monkeypatch.setattr("selfaug.toolkit.rows.BLOCK", block)
    file = tmp_path / "rows.json"
    values = [{"a": "x\ny, ]"}, {"a": 12}, {"a": [1, {"b": "ü"}]}]
    file.write_text("\n[ " + ",\n ".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n]\n", "utf-8")
    assert list(rows(file)) == [(2, values[0]), (3, values[1]), (4, values[2])]
    (tmp_path / "none.json").write_text(" [ ] ")
    assert list(rows(tmp_path / "none.json")) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": 1}', 1),
        ('[{"a": 1}\n{"a": 2}]', 2),
        ('[{"a": 1},\n{"a": 2}', 2),
        ('[\n{"a": x}]', 2),
        ('[{"a": 1}]\nx', 2),
        ("[1]", 1),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_a_broken_json_list_is_reported_with_its_line(tmp_path, monkeypatch, text, line, block):
    monkeypatch.setattr("selfaug.toolkit.rows.BLOCK", block)
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(Refusal, match=f"rows.json:{line}: "):
        list(rows(file))


def test_json_comes_out_as_a_list(files):
    out = files[2].with_suffix(".json")
    assert run(*files[:2], out) == 0
    assert len(json.loads(out.read_text())) == 50


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
def test_parquet_goes_in_and_out(tmp_path, files):
    import datasets

    datasets.Dataset.from_list([chat(f"task {i}") for i in range(5)]).to_parquet(tmp_path / "task.parquet")
    assert run(tmp_path / "task.parquet", files[1], tmp_path / "out.parquet") == 0
    mixed = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(mixed) == 25
    assert set(mixed.column_names) == {"messages"}


def test_parquet_without_the_library_names_the_command_that_installs_it(files, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert run(*files[:2], files[2].with_suffix(".parquet")) == 1
    assert "pip install datasets" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("old\n")
    with pytest.raises(TypeError), RowWriter(out) as writer:
        writer.write(dumps({"a": object()}))
    assert left(tmp_path) == ["out.jsonl"]
    assert out.read_text() == "old\n"


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    """10 MB in less than 2 MB."""
    monkeypatch.setattr(mixture, "BUCKET_BYTES", 1 << 18)
    task, talk = tmp_path / "task.jsonl", tmp_path / "talk.jsonl"
    with task.open("wb") as stream:
        stream.writelines(dumps(chat(f"task {i}", "x" * 2000)) + b"\n" for i in range(5000))
    with talk.open("wb") as stream:
        stream.writelines(dumps(chat(f"talk {i}")) + b"\n" for i in range(100))
    tracemalloc.start()
    try:
        mixture.mix([task], talk, tmp_path / "out.jsonl")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_what_a_killed_run_left_is_gone_after_the_next(files, tmp_path):
    before = left(tmp_path)
    (tmp_path / ".mixed.jsonl.part").write_text("half")
    (tmp_path / ".mixed.jsonl.buckets").mkdir()
    (tmp_path / ".mixed.jsonl.buckets" / "99").write_text("half")
    assert run(*files) == 0
    assert left(tmp_path) == sorted([*before, "mixed.jsonl", "mixed.jsonl.manifest.json"])
