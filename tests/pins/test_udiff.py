"""Patches are placed by their text alone, exactly, and whatever is wrong with them is a PatcherError."""

from __future__ import annotations

import difflib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from releases import TABLE

from selfaug_patcher.errors import PatcherError
from selfaug_patcher.udiff import MAX_FILE_BYTES, MAX_PATCH_BYTES, apply, parse, reverse

HEAD = "Subject: a test\n\n--- a/pkg/file.py\n+++ b/pkg/file.py\n"
INSERT = HEAD + "@@ -1,2 +1,3 @@\n one\n+new\n two\n"
REAL = [(TABLE.root / name).read_text() for name in TABLE.patches]


def refused(text: str, stock: bytes = b"") -> str:
    with pytest.raises(PatcherError) as caught:
        apply(parse(text, "x.patch"), stock)
    assert str(caught.value).endswith("Nothing was changed.")
    return str(caught.value)


def test_a_hunk_is_placed_by_its_text_at_any_offset():
    patch = parse(INSERT, "x.patch")
    assert patch.headers == {"Subject": "a test"}
    assert patch.target == "pkg/file.py"
    stock = b"zero\n" * 5000 + b"one\ntwo\nrest"
    assert apply(patch, stock) == b"zero\n" * 5000 + b"one\nnew\ntwo\nrest"
    assert reverse(patch, apply(patch, stock)) == stock


def test_folded_headers_are_joined():
    text = INSERT.replace("a test", "a\n long\n  test")
    assert parse(text, "x.patch").headers == {"Subject": "a long test"}


@pytest.mark.parametrize(
    ("stock", "words"),
    [
        pytest.param(b"one\nthree\n", "is not in the file", id="absent"),
        pytest.param(b"one\ntwo\none\ntwo\n", "more than once", id="twice"),
        pytest.param(b"one\r\ntwo\r\n", "is not in the file", id="other line ends"),
        pytest.param(b"one \ntwo\n", "is not in the file", id="trailing space"),
        pytest.param(b"someone\ntwo\n", "is not in the file", id="line that only ends like the first"),
        pytest.param(b"one\ntwo", "is not in the file", id="last line without an end"),
        pytest.param(b"one\ntwo\none\nnew\ntwo\n", "could not be reversed", id="result holds the post-image twice"),
        pytest.param(b"\n" * (MAX_FILE_BYTES + 1), "is for a source file", id="enormous"),
    ],
)
def test_a_file_that_it_does_not_fit_exactly_once_is_refused(stock, words):
    assert words in refused(INSERT, stock)


def test_overlapping_matches_count_as_two():
    text = HEAD + "@@ -1,2 +1,3 @@\n a\n+new\n a\n"
    assert "line 1 and line 2" in refused(text, b"a\na\na\n")


def test_hunks_out_of_order_are_refused():
    text = HEAD + "@@ -5 +5,2 @@\n b\n+x\n@@ -1 +1,2 @@\n a\n+y\n"
    assert "comes before the one above it" in refused(text, b"a\nb\n")


def test_the_end_of_a_file_without_a_line_end_can_be_changed():
    text = HEAD + "@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+c\n"
    patch = parse(text, "x.patch")
    assert apply(patch, b"b\na\nb") == b"b\na\nc\n"
    assert reverse(patch, b"b\na\nc\n") == b"b\na\nb"
    assert "is not in the file" in refused(text, b"a\nb\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "not a unified diff", id="empty"),
        pytest.param(INSERT[:-1], "cut off", id="truncated in a line"),
        pytest.param(INSERT[:-5], "is not as long as it says", id="truncated between lines"),
        pytest.param(HEAD, "changes nothing", id="no hunk"),
        pytest.param(HEAD + "@@ -1,2 +1,2 @@\n one\n two\n", "changes nothing", id="context only"),
        pytest.param(HEAD + "@@ -0,0 +1 @@\n+new\n", "has no context", id="insertion anywhere"),
        pytest.param(HEAD + "@@ -1 +0,0 @@\n-old\n", "has no context", id="cannot be reversed"),
        pytest.param(INSERT.replace("@@ -1,2", "@@ -1,3"), "is not as long as it says", id="wrong length"),
        pytest.param(INSERT.replace("@@ -1,2", "@@ -1," + "9" * 5000), "a hunk should begin", id="number too long"),
        pytest.param(INSERT + "junk\n", "neither context nor change", id="text after the hunk"),
        pytest.param(INSERT + INSERT, "neither context nor change", id="two files"),
        pytest.param("junk\n" + INSERT, "header that cannot be read in line 1", id="text before the diff"),
        pytest.param("Subject: b\n" + INSERT, "header that cannot be read in line 2", id="header twice"),
        pytest.param(INSERT.replace("one", "one\r"), "control character", id="carriage return"),
        pytest.param(INSERT.replace("one", "one\0"), "control character", id="NUL"),
        pytest.param(INSERT.replace("one", "\ud800"), "control character", id="surrogate"),
        pytest.param(INSERT + "+" * MAX_PATCH_BYTES, "too long", id="enormous"),
        pytest.param(
            HEAD + "@@ -1,2 +1,3 @@\n a\n\\ No newline at end of file\n b\n+c\n",
            "goes on after",
            id="end before the end",
        ),
    ],
)
def test_what_is_not_a_patch_of_one_file_is_refused(text, words):
    assert words in refused(text)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd.py", "../x.py", "a/../../x.py", "./x.py", "a//b.py", "C:/x.py", "a\\b.py", "~/x.py", "x.pth", "",
        "x.py\t2020-01-01", "dev/null", ".hidden/x.py", "é.py",
    ],
)  # fmt: skip
def test_a_path_that_is_not_plainly_inside_a_package_is_refused(path):
    assert "does not name one file inside a package" in refused(INSERT.replace("pkg/file.py", path))


def test_a_rename_is_refused():
    assert "does not name one file" in refused(INSERT.replace("b/pkg/file.py", "b/pkg/other.py"))


# Few distinct lines, so that blocks repeat, and lines that look like parts of a diff.
lines = st.lists(
    st.sampled_from(["", "a", "b", "c", "--- a/x", "+++ b/x", "@@ -1 +1 @@", "\\", "\f", "é"]), max_size=12
)


@given(old=lines, new=lines, context=st.integers(0, 3), old_end=st.booleans(), new_end=st.booleans())
@settings(max_examples=300, deadline=None)
@example(["a"], ["a", "b"], 1, False, True)
def test_apply_gives_the_new_file_or_refuses_and_reverse_gives_the_old_one(old, new, context, old_end, new_end):
    left, right = joined(old, old_end), joined(new, new_end)
    text = HEAD.replace("--- a/pkg/file.py\n+++ b/pkg/file.py\n", "")
    for line in difflib.unified_diff(
        left.splitlines(True), right.splitlines(True), "a/pkg/file.py", "b/pkg/file.py", n=context
    ):
        text += line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
    try:
        patch = parse(text, "x.patch")
        patched = apply(patch, left.encode())
    except PatcherError:
        return  # ambiguous, without context, or equal: nothing to place
    assert patched == right.encode()
    assert reverse(patch, patched) == left.encode()


def joined(parts: list[str], end: bool) -> str:
    return "\n".join(parts) + ("\n" if end and parts else "")


@given(st.text(max_size=400) | st.text(alphabet="@+- \\\n,0123ab:/.py", max_size=400), st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_is_parsed_or_refused(text, stock):
    survives(text, stock)
    survives(HEAD + text, stock)


@given(st.sampled_from(REAL), st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_patch_is_parsed_or_refused(text, data):
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 80))
        text = text[:start] + data.draw(st.text(max_size=8)) + text[start + length :]
    stock = b"".join(line[1:].encode("utf-8", "replace") + b"\n" for line in text.split("\n") if line[:1] in (" ", "-"))
    survives(text, stock)


def survives(text: str, stock: bytes) -> None:
    try:
        patch = parse(text, "x.patch")
        patched = apply(patch, stock)
    except PatcherError:
        return
    assert not patch.target.startswith("/")
    assert ".." not in patch.target
    assert reverse(patch, patched) == stock


def test_repetition_does_not_make_the_search_endless():
    """All of the pre-image but its last line stands everywhere: a search that starts over at each line never ends."""
    count = MAX_PATCH_BYTES // 2 - 100
    text = HEAD + f"@@ -1,{count + 1} +1,{count + 2} @@\n" + " \n" * count + "+new\n end\n"
    assert "is not in the file" in refused(text, b"\n" * MAX_FILE_BYTES)
