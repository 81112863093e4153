"""Values that look right by their shape only: each is refused with file, line and column; nothing is a traceback."""

from __future__ import annotations

import datetime
import decimal
import importlib.util
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfaug.self_dialogue import cli

ASKED, SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
GOOD = {"messages": [ASKED, SAID]}
HALF = "\ud800"
needs_parquet = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def mix(tmp_path, capsys):
    """Mix rows, or a file, with one dialogue; the exit code and what was said."""

    def run(task, *options, out="out.jsonl"):
        task = task if isinstance(task, Path) else write(tmp_path / "task.jsonl", task)
        talk = write(tmp_path / "talk.jsonl", [GOOD])
        command = ["mix", "--task", str(task), "--dialogues", str(talk), "--out", str(tmp_path / out), *options]
        return cli.main(command), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"messages": [ASKED, {"role": "assistant", "content": f"a{HALF}"}]}, "messages[1].content"),
        ({**GOOD, "note": [{"x": HALF}]}, "note[0].x"),
        ({**GOOD, "score": float("nan")}, "score is nan"),
        ({**GOOD, "scores": [1.0, float("inf")]}, "scores[1] is inf"),
        ({"messages": [{"role": ["user"], "content": "x"}, SAID]}, "messages[0]: a message without a known role"),
        ({"messages": [ASKED, {"role": "assistant", "content": 0, "tool_calls": [{}]}]}, "messages[1]: the content"),
        ({"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": 3}]}, "messages[1]: tool_calls"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, 'known "from"'),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": 3}]}, "value is no text: 3"),
        *[
            ({"instruction": "a", "input": "b", "output": "c", "system": "d", name: value}, f"{name} is no")
            for name in ("instruction", "input", "output", "system")
            for value in (5, 0, True, False, ["x"], {"x": 1}, 2.5)
        ],
        ({"instruction": None, "output": "c"}, "instruction is no text"),
        *[({"instruction": "a", "output": "c", "history": value}, "history is not") for value in (0, False, "", "x")],
        ({"instruction": "a", "output": "c", "history": [["q", None]]}, "history is no text"),
        *[({"prompt": value, "completion": "c"}, "prompt") for value in (5, None, True, [], [3], {"a": 1})],
        *[({"prompt": "p", "completion": value}, "completion is no text") for value in (5, None, True, [SAID])],
        *[({"messages": value}, "messages") for value in (5, None, True, "x", [], [3], [None], {"role": "user"})],
    ],
)
def test_a_value_of_another_kind_is_refused_by_file_line_and_column(mix, tmp_path, row, column):
    other = {"messages": "prompt-completion"}.get(next(iter(row)), "messages")
    for options in ((), ("--format", other)):
        code, said = mix([row, row], *options)
        assert code == 1
        assert f"{tmp_path / 'task.jsonl'}:1: " in said
        assert column in said
        assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        pytest.param(b'{"messages": ' + b"[" * 100_000, 1, id="nested-without-end"),
        pytest.param(b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", 1, id="nested"),
        pytest.param(b'{"messages": [], "messages": []}', 1, id="a-key-twice"),
        pytest.param(json.dumps(GOOD).encode() + b"\n\n\xff", 3, id="not-utf-8"),
        pytest.param(json.dumps(GOOD).encode("utf-16"), 1, id="utf-16"),
        pytest.param(json.dumps(GOOD).encode("utf-16-le"), 1, id="utf-16-without-a-mark"),
        pytest.param(json.dumps(GOOD).encode("utf-32"), 1, id="utf-32"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", 1, id="a-number-of-5000-digits"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_file_that_cannot_be_read_is_refused_by_file_and_line(mix, tmp_path, content, line, suffix):
    file = tmp_path / f"task.{suffix}"
    file.write_bytes(b"[" + content.replace(b"\n\n", b",\n\n") + b"]" if suffix == "json" else content)
    code, said = mix(file)
    assert code == 1
    assert f"{file}:{line}: " in said


def test_rows_with_a_byte_order_mark_are_read_and_the_mark_is_gone(mix, tmp_path):
    line = json.dumps(GOOD).encode() + b"\n"
    (tmp_path / "task.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\xef\xbb\xbf" + line)  # two files, joined
    assert mix(tmp_path / "task.jsonl")[0] == 0
    assert (tmp_path / "out.jsonl").read_bytes() == line * 3


def test_a_file_that_may_not_be_read_is_an_error_and_no_traceback(mix, tmp_path, monkeypatch):
    file = write(tmp_path / "task.jsonl", [GOOD])
    real = Path.open

    def denied(self, *args, **keywords):
        if self == file:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **keywords)

    monkeypatch.setattr(Path, "open", denied)
    code, said = mix(file)
    assert code == 1
    assert f"Permission denied: '{file}'" in said


def parquet(file, **columns):
    import pyarrow
    import pyarrow.parquet

    made = {name: pyarrow.array(*value) if isinstance(value, tuple) else value for name, value in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(made), file)
    return file


@needs_parquet
@pytest.mark.parametrize(
    ("values", "column"),
    [
        pytest.param(([datetime.datetime(2024, 1, 1)],), "made", id="time"),
        pytest.param(([datetime.date(2024, 1, 1)],), "made", id="date"),
        pytest.param(([datetime.timedelta(1)],), "made", id="duration"),
        pytest.param(([decimal.Decimal("1.5")],), "made", id="decimal"),
        pytest.param(([b"x"],), "made", id="bytes"),
        pytest.param(([float("nan")],), "made", id="nan"),
        pytest.param(([{"a": [{"b": b"x"}]}],), "made.a[0].b", id="nested-bytes"),
        pytest.param(([{"bytes": b"\x89PNG", "path": None}],), "made.bytes", id="image"),
        pytest.param(([1 << 50], "time"), "made", id="a-time-beyond-python"),
        pytest.param(([[("k", 1)]], "map"), "made", id="map"),
    ],
)
def test_a_parquet_column_that_json_cannot_hold_is_refused_with_its_name(mix, tmp_path, values, column):
    import pyarrow

    kinds = {"time": pyarrow.timestamp("s"), "map": pyarrow.map_(pyarrow.string(), pyarrow.int64())}
    values = (values[0], *[kinds[name] for name in values[1:]])
    file = parquet(tmp_path / "task.parquet", messages=([[ASKED, SAID]],), made=values)
    code, said = mix(file)
    assert code == 1
    assert f"{file}:1: " in said
    assert column in said


@needs_parquet
def test_parquet_without_such_columns_gives_the_rows_that_are_in_it(mix, tmp_path):
    row = {**GOOD, "id": 7, "meta": {"a": [1.5, None], "b": [{"c": "ü"}]}, "day": "2024-01-01", "yes": True}
    file = parquet(tmp_path / "task.parquet", **{name: ([value],) for name, value in row.items()})
    assert mix(file)[0] == 0
    assert row in [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]


@needs_parquet
def test_texts_that_look_like_times_stay_texts_in_parquet(mix, tmp_path):
    import pyarrow.parquet

    assert mix([{**GOOD, "day": "2024-01-01"}], out="out.parquet")[0] == 0
    assert "2024-01-01" in pyarrow.parquet.read_table(tmp_path / "out.parquet").column("day").to_pylist()


@needs_parquet
def test_a_column_that_parquet_cannot_hold_is_refused_with_its_name(mix, tmp_path):
    for rows in ([{**GOOD, "mixed": 1}, {**GOOD, "mixed": "x"}], [{**GOOD, "mixed": 1 << 70}]):
        code, said = mix(rows, out="out.parquet")
        assert code == 1
        assert "error[no-parquet]" in said
        assert "mixed" in said
        assert not [file for file in tmp_path.iterdir() if "out.parquet" in file.name]


@needs_parquet
def test_what_is_no_parquet_is_refused(mix, tmp_path):
    (tmp_path / "task.parquet").write_bytes(b"PAR1 not really")
    code, said = mix(tmp_path / "task.parquet")
    assert code == 1
    assert "this Parquet file cannot be read" in said


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([HALF, "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("messages", "prompt", "completion", "instruction", "input", "output", "system", "history", "conversations")
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        **{
            name: st.sampled_from(["user", "human", "gpt", "system", "assistant"]) | VALUES for name in ("role", "from")
        },
        **{name: st.text(max_size=5) | VALUES for name in ("content", "value", "name", "tool_calls")},
    },
)
ROWS = st.lists(
    st.fixed_dictionaries({}, optional={name: VALUES | st.lists(MESSAGE, max_size=3) for name in (*NAMES, "id")})
    | st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3)}, optional={"tools": VALUES, "system": VALUES}),
    max_size=3,
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def exit_code(*command):
    return cli.main([str(part) for part in command])


@FUZZ
@given(ROWS, st.sampled_from([None, *cli.formats.FORMATS]), st.sampled_from(["jsonl", "json"]))
def test_no_row_ends_in_a_traceback(rows, format, suffix):
    with tempfile.TemporaryDirectory() as folder:
        task, talk, out = (Path(folder, name) for name in (f"task.{suffix}", "talk.jsonl", "out.jsonl"))
        task.write_text(json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows))
        write(talk, [GOOD])
        options = ["--format", format] if format else []
        code = exit_code("mix", "--task", task, "--dialogues", talk, "--out", out, *options)
        assert code in (0, 1)
        assert out.exists() == (code == 0)
        if code == 0:  # and what was written can be read by whoever reads JSON
            for line in out.read_text(encoding="utf-8").splitlines():
                json.loads(line, parse_constant=pytest.fail)


@FUZZ
@given(st.binary(max_size=60), st.sampled_from(["jsonl", "json", "parquet"]))
def test_no_bytes_end_in_a_traceback(content, suffix):
    with tempfile.TemporaryDirectory() as folder:
        task, talk, out = (Path(folder, name) for name in (f"task.{suffix}", "talk.jsonl", "out.jsonl"))
        task.write_bytes(content)
        write(talk, [GOOD])
        assert exit_code("mix", "--task", task, "--dialogues", talk, "--out", out) == 1
