"""How prompts begin: without the mark of a file, and with what the tokenizer puts in front of a plain text."""

from __future__ import annotations

import hashlib
import json

import pytest
import tiny_chat
from tokenizers.processors import TemplateProcessing

from selfaug.self_dialogue import cli
from selfaug.toolkit import training_rows
from selfaug.toolkit.chat import Chat
from selfaug.toolkit.errors import Refusal

MARK = b"\xef\xbb\xbf"
ASKED = {"role": "user", "content": "where does ada keep the bread now?"}
SAID = {"role": "assistant", "content": "ada keeps the bread in a small old town"}
KINDS = {"bos": "<|im_start|> $A", "bos-and-eos": "<|im_start|> $A <|im_end|>", "eos": "$A <|im_end|>", "none": "$A"}


WRITTEN = {
    "messages": "11f53f1f7eac21fc",
    "prompt-completion": "5e81bfba322df9bc",
    "prompt-completion-chat": "ee92fb5746372fdc",
    "alpaca": "51dc8689b92da4a5",
    "sharegpt": "acf250eff69c73d3",
}


def tokenizer(kind, template=None):
    """The tiny tokenizer, with a post-processor as Llama's: it adds special tokens around every text."""
    made = tiny_chat.tokenizer(template)
    made.bos_token = "<|im_start|>"
    tokens = [(token, made.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
    made.backend_tokenizer.post_processor = TemplateProcessing(single=KINDS[kind], special_tokens=tokens)
    return made


def read(made, text):
    """What ``tokenizer(text)`` gives, but for an end: a prompt goes on."""
    ids = made(text)["input_ids"]
    return ids[:-1] if ids and ids[-1] == made.eos_token_id else ids


@pytest.mark.parametrize("kind", KINDS)
def test_plain_prompts_are_what_the_tokenizer_makes_of_the_text(kind):
    made = tokenizer(kind)
    chat = Chat(made, "plain")
    text = f"User: {ASKED['content']}\n\nAssistant:"
    assert chat.assistant_prompt([ASKED]) == read(made, text)
    assert chat.user_prompt([]) == read(made, "User:")
    assert chat.user_prompt([ASKED, SAID]) == read(made, f"{text} {SAID['content']}\n\nUser:")
    assert (chat.user_prompt([])[0] == made.bos_token_id) == kind.startswith("bos")


def test_a_system_text_that_begins_with_bos_gets_no_second_one():
    made = tokenizer("bos")
    ids = Chat(made, "plain").assistant_prompt([{"role": "system", "content": "<|im_start|>Be brief."}, ASKED])
    assert ids[0] == made.bos_token_id != ids[1]


def test_a_chat_template_writes_its_beginning_itself():
    made = tokenizer("bos", tiny_chat.CHATML)
    expected = made.apply_chat_template([ASKED], tokenize=False, add_generation_prompt=True)
    assert Chat(made).assistant_prompt([ASKED]) == made(expected, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_plain_rendering_made_are_trained_on_as_they_were_generated(kind, tmp_path, jsonl):
    made = tokenizer(kind)
    made.save_pretrained(tmp_path / "base")
    task, talk = (
        jsonl("task.jsonl", [{"prompt": "x", "completion": "y"}]),
        jsonl("t.jsonl", [{"messages": [ASKED, SAID]}]),
    )
    command = [
        "mix",
        "--task",
        task,
        "--dialogues",
        talk,
        "--out",
        tmp_path / "out.jsonl",
        "--render",
        "--template",
        "plain",
    ]
    assert cli.main([str(part) for part in [*command, "--tokenizer", tmp_path / "base"]]) == 0
    rows = {row["completion"]: (where, row) for where, row in training_rows.read(tmp_path / "out.jsonl")}
    where, row = rows[SAID["content"]]
    assert not row["prompt"].startswith("<")  # a trainer that adds BOS itself would write it twice
    found = training_rows.tokenised(row, where, made)
    prompt = Chat(made, "plain").assistant_prompt([ASKED])
    answer = made(SAID["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert found == {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
    assert (found["input_ids"][0] == made.bos_token_id) == kind.startswith("bos")


@pytest.fixture
def anchored(tmp_path, jsonl, capsys):
    """``mix --anchors --template plain`` with this tokenizer: ids and labels of a task row, and an anchor's ids."""

    def run(made, asked=(ASKED,)):
        made.save_pretrained(tmp_path / "base")
        task = jsonl("task.jsonl", [{"messages": [*asked, SAID]}])
        talk = jsonl("talk.jsonl", [{"messages": [ASKED, SAID, ASKED, SAID]}])
        words = ["mix", "--task", task, "--dialogues", talk, "--out", tmp_path / "out.jsonl", "--anchors"]
        code = cli.main([str(word) for word in [*words, "--template", "plain", "--tokenizer", tmp_path / "base"]])
        if code:
            return code, capsys.readouterr().err
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        anchor, trained = sorted(rows, key=lambda row: max(row["labels"]))
        assert set(anchor["labels"]) == {-100}
        return trained["input_ids"], trained["labels"], anchor["input_ids"]

    return run


PLAIN = f"User: {ASKED['content']}\n\nAssistant: {SAID['content']}"


@pytest.mark.parametrize("kind", KINDS)
def test_plain_rows_of_token_ids_begin_with_bos_and_end_with_eos(kind, anchored):
    made = tokenizer(kind)
    ids, labels, anchor = anchored(made)
    assert ids == [*read(made, PLAIN), made.eos_token_id]
    assert anchor == [*read(made, f"{PLAIN}\n\n{PLAIN}"), made.eos_token_id]
    assert made.decode([label for label in labels if label != -100]) == f" {SAID['content']}<|im_end|>"
    assert (ids[0] == made.bos_token_id) == (anchor[0] == made.bos_token_id) == kind.startswith("bos")


def test_a_plain_row_of_token_ids_is_the_prompt_that_the_model_was_given_and_its_answer(anchored):
    made = tokenizer("bos")
    ids, labels, _ = anchored(made, [ASKED, SAID, ASKED])
    prompt = Chat(made, "plain").assistant_prompt([ASKED, SAID, ASKED])
    assert ids[: len(prompt)] == prompt
    assert labels == [-100] * len(prompt) + ids[len(prompt) :]
    assert ids.count(made.bos_token_id) == ids.count(made.eos_token_id) == 1


@pytest.mark.parametrize("make", [training_rows.tokenised, training_rows.unlabelled])
def test_a_plain_row_whose_tokenizer_has_no_eos_is_refused_by_file_and_line(make):
    made = Chat(tokenizer("bos"), "plain").tokenizer
    made.eos_token = None
    row = {"messages": [ASKED, SAID]} if make is training_rows.tokenised else [ASKED, SAID]
    with pytest.raises(training_rows.RowError, match=r"t.jsonl:3: the tokenizer has no EOS token"):
        make(row, "t.jsonl:3", made, plain=True)


@pytest.mark.parametrize("content", [None, "", "I look it up."])
def test_a_message_with_tool_calls_which_the_plain_template_would_lose_is_refused_by_file_and_line(content, anchored):
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    called = {"role": "assistant", "content": content, "tool_calls": [call]}
    code, told = anchored(tokenizer("bos"), [ASKED, called, ASKED])
    assert code == 1
    assert "task.jsonl:1: the chat template does not take these messages: message 2 has tool_calls" in told
    with pytest.raises(Refusal, match="message 2 has tool_calls, which the plain template cannot hold"):
        Chat(tokenizer("bos"), "plain").assistant_prompt([ASKED, called, ASKED])


@pytest.mark.parametrize("role", ["tool", "developer", "function"])
def test_a_message_of_a_role_that_the_plain_template_would_give_to_the_assistant_is_refused(role, anchored):
    code, told = anchored(tokenizer("bos"), [ASKED, {"role": role, "content": "42"}, ASKED])
    assert code == 1
    assert f"task.jsonl:1: the chat template does not take these messages: message 2 has the role '{role}'" in told


def test_rows_of_token_ids_with_a_template_that_writes_bos_get_no_second_one(tmp_path, jsonl):
    made = tokenizer("bos-and-eos", tiny_chat.CHATML)
    row, rendered = {"messages": [ASKED, SAID]}, made.apply_chat_template([ASKED, SAID], tokenize=False)
    whole = made(rendered, add_special_tokens=False)["input_ids"]
    assert training_rows.unlabelled(row["messages"], "", made)["input_ids"] == whole
    assert training_rows.tokenised(row, "", made)["input_ids"] == whole[:-1]  # without the line end


@pytest.fixture
def written(monkeypatch):
    """A model that writes the tiny dialogues in their order; the prompts that it was given."""
    from selfaug.self_dialogue import generator

    said = list(tiny_chat.dialogues())
    prompts = []

    def write(self, requests, tokens, ending):
        prompts.extend(request.prompt for request in requests)
        texts = [said[request.dialogue % len(said)][request.turn % 2]["content"] for request in requests]
        return [self.tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"] for text in texts]

    monkeypatch.setattr(generator.TransformersGenerator, "write", write)
    return prompts


def test_generate_gives_the_model_the_beginning(chat_model, tmp_path, written):
    for file in chat_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer("bos").save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    command = ["generate", "--model", tmp_path, "--out", tmp_path / "out.jsonl", "--device", "cpu", "--near", "off"]
    assert cli.main([str(part) for part in [*command, "--template", "plain", "--count", "2"]]) == 0
    assert written
    assert all(prompt[0] == 1 and 1 not in prompt[1:] for prompt in written)


@pytest.mark.parametrize(("format", "wanted"), WRITTEN.items())
def test_what_generate_writes_is_what_it_wrote_before(generate, written, format, wanted):
    """The hashes are of what the release before these checks wrote for the same turns."""
    out = generate("--count", "12", "--turns", "1" if format == "prompt-completion" else "2", "--format", format)
    assert hashlib.sha256(out.read_bytes()).hexdigest()[:16] == wanted


def test_a_mark_is_no_part_of_a_template(tmp_path):
    (tmp_path / "with.jinja").write_bytes(MARK + tiny_chat.CHATML.encode())
    (tmp_path / "without.jinja").write_bytes(tiny_chat.CHATML.encode())
    marked, plain = (Chat(tiny_chat.tokenizer(None), str(tmp_path / f"{name}.jinja")) for name in ("with", "without"))
    assert marked.prompt_text([ASKED]) == plain.prompt_text([ASKED])
    assert marked.sha256 == plain.sha256


def test_a_mark_in_the_template_of_the_models_folder_is_no_part_of_it():
    marked = Chat(tiny_chat.tokenizer("\ufeff" + tiny_chat.CHATML))
    assert marked.prompt_text([ASKED]) == Chat(tiny_chat.tokenizer()).prompt_text([ASKED])


def test_a_mark_is_no_part_of_a_topic_or_of_an_evaluation_set(tmp_path):
    from selfaug.self_dialogue.commands import _topics
    from selfaug.self_dialogue.evaluation_sets import _file_texts

    (tmp_path / "topics.txt").write_bytes(MARK + b"bread\n" + MARK + b"  rain \n\n")  # two files joined
    assert _topics(tmp_path / "topics.txt") == [(1, "bread"), (2, "rain")]
    assert [text.strip() for text in _file_texts(tmp_path / "topics.txt")] == ["bread", "rain"]


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
@pytest.mark.parametrize("option", ["--template", "--topics", "--decontaminate"])
def test_a_text_in_another_coding_is_refused_by_file_and_line(generate, tmp_path, capsys, option, coding):
    file = tmp_path / "given.txt"
    file.write_bytes("{{ messages }}\ncafé\n".encode(coding))
    generate("--count", "1", option, str(file), status=1)
    line = 2 if coding == "latin-1" else 1
    said = capsys.readouterr().err
    assert f"error[not-text]: {file} cannot be read" in said
    assert f"{file}:{line}: " in said


def test_a_system_message_that_is_no_text_is_a_usage_error(generate, capsys):
    with pytest.raises(SystemExit) as left:
        generate("--count", "1", "--system", "caf\udce9")
    assert left.value.code == 2


@pytest.mark.parametrize(
    "log",
    [
        b"[]\n",
        b"[[]]\n",
        b'{"settings": [1]}\n',
        b'{"settings": {}}\n{"turns": [[1, 2, 3, 4, 5]]}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_log_that_is_none_is_refused(tmp_path, log):
    from selfaug.self_dialogue.dialogue_log import DialogueLog

    (tmp_path / "log").write_bytes(log)
    with pytest.raises(Exception, match=r"error\[bad-log\]"):
        DialogueLog(tmp_path / "log", {})


@pytest.mark.parametrize("content", [b'{"model": 5}', b"[" * 100_000, b'{"model": ["x"]}', b"\xff"])
def test_a_manifest_that_is_none_names_no_tokenizer(tmp_path, jsonl, content):
    talk = jsonl("talk.jsonl", [{"messages": [ASKED, SAID]}])
    (tmp_path / "talk.jsonl.manifest.json").write_bytes(content)
    assert cli.main(["mix", "--task", str(talk), "--dialogues", str(talk), "--out", str(tmp_path / "o.jsonl")]) == 0


def test_a_damaged_tokenizer_is_an_error_and_no_traceback(tmp_path, jsonl, capsys):
    tiny_chat.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": 3}))
    talk = jsonl("talk.jsonl", [{"messages": [ASKED, SAID]}])
    command = [
        "mix",
        "--task",
        talk,
        "--dialogues",
        talk,
        "--out",
        tmp_path / "o.jsonl",
        "--tokenizer",
        tmp_path / "model",
    ]
    assert cli.main([str(part) for part in command]) == 1
    assert "error[no-tokenizer]" in capsys.readouterr().err
