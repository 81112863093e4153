"""`generate`: what it writes follows from its settings alone, and an interruption changes nothing."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import tiny_chat
from transformers import AutoTokenizer

from selfaug.self_dialogue import cli, generator, manifest
from selfaug.toolkit.files import sha256


def test_it_writes_as_many_dialogues_of_the_model_with_itself_as_asked_for(generate, read):
    rows = read(generate("--count", "10"))
    assert len(rows) == 10
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert row["messages"][0]["content"].startswith("where does")
        assert "keeps the" in row["messages"][1]["content"]


def test_the_same_command_writes_the_same_bytes_and_another_seed_does_not(generate):
    first = generate("--count", "8", out="a.jsonl").read_bytes()
    assert generate("--count", "8", out="b.jsonl").read_bytes() == first
    assert generate("--count", "8", "--seed", "1", out="c.jsonl").read_bytes() != first


def test_a_dialogue_does_not_depend_on_the_batch_that_it_is_in(generate, read):
    first = read(generate("--count", "8", out="a.jsonl"))
    assert read(generate("--count", "8", "--batch", "3", out="b.jsonl")) == first


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 5])
def test_an_interrupted_run_goes_on_to_the_same_file(generate, tmp_path, monkeypatch, batches):
    whole = generate("--count", "6", "--turns", "2", out="whole.jsonl")
    left = [batches]

    class Interrupted(generator.TransformersGenerator):
        def write(self, *arguments):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return super().write(*arguments)

    with monkeypatch.context() as patch:
        patch.setitem(generator.BACKENDS, "transformers", Interrupted)
        out = generate("--count", "6", "--turns", "2", status=130)
    assert not out.exists()
    assert len((tmp_path / "out.jsonl.log").read_bytes().splitlines()) == 1 + batches
    out = generate("--count", "6", "--turns", "2")
    assert out.read_bytes() == whole.read_bytes()
    again, before = manifest.read(out), manifest.read(whole)
    assert again["filters"] == before["filters"]
    assert again["kept"] == before["kept"]
    assert again["generated"]["tokens"] == before["generated"]["tokens"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.jsonl{end}" for name in ("out", "whole") for end in ("", ".manifest.json")
    )


@pytest.fixture
def interrupted(generate, tmp_path, monkeypatch):
    """The log of a run that wrote two batches."""
    left = [2]

    class Interrupted(generator.TransformersGenerator):
        def write(self, *arguments):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return super().write(*arguments)

    with monkeypatch.context() as patch:
        patch.setitem(generator.BACKENDS, "transformers", Interrupted)
        generate("--count", "8", status=130)
    return tmp_path / "out.jsonl.log"


def test_a_batch_that_was_cut_short_on_disk_is_written_again(generate, interrupted):
    whole = generate("--count", "8", out="whole.jsonl").read_bytes()
    interrupted.write_bytes(interrupted.read_bytes()[:-7])
    assert generate("--count", "8").read_bytes() == whole


def test_a_log_of_other_settings_is_refused_and_named(generate, interrupted, capsys):
    before = interrupted.read_bytes()
    generate("--count", "8", "--temperature", "0.9", status=1)
    told = capsys.readouterr().err
    assert "error[other-settings]" in told
    assert "expected: temperature 0.7" in told
    assert "found:    temperature 0.9" in told
    assert str(interrupted) in told
    assert told.endswith("was not written.\n")
    assert interrupted.read_bytes() == before


def test_several_turns_follow_each_other(generate, read):
    for row in read(generate("--count", "3", "--turns", "3")):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"] * 3


def test_topics_ask_the_model_for_a_message(generate, read, tmp_path):
    (tmp_path / "topics.txt").write_text("where does ada keep the bread now?\n")
    log = tmp_path / "rejected.jsonl"
    rows = read(
        generate(
            "--count",
            "2",
            "--topics",
            str(tmp_path / "topics.txt"),
            "--topic-prompt",
            "{topic}",
            "--rejected",
            str(log),
        )
    )
    assert all(" keeps the " in row["messages"][0]["content"] for row in rows)  # the answer is the user's message


@pytest.fixture
def refusing(tmp_path):
    """A template that takes no system message, and no message that says xyz."""
    no = "{% if m.role == 'system' or 'xyz' in m.content %}{{ raise_exception('not this one') }}{% endif %}"
    file = tmp_path / "refusing.jinja"
    file.write_text(tiny_chat.CHATML.replace("%}", "%}" + no, 1), encoding="utf-8")
    return str(file)


def test_a_topic_that_the_template_does_not_take_is_named_by_file_and_line(generate, tmp_path, capsys, refusing):
    topics = tmp_path / "topics.txt"
    topics.write_text("bread\n\nxyz\n", encoding="utf-8")
    generate("--count", "1", "--topics", str(topics), "--template", refusing, status=1)
    error = capsys.readouterr().err
    assert f"error[bad-template]: {topics}:3: the chat template fails" in error
    assert "not this one" in error
    assert not (tmp_path / "out.jsonl.log").exists()


def test_a_system_message_that_the_template_does_not_take_is_named_by_its_option(generate, tmp_path, capsys, refusing):
    (tmp_path / "topics.txt").write_text("bread\n", encoding="utf-8")
    for topics in ((), ("--topics", str(tmp_path / "topics.txt"))):
        generate("--count", "1", "--system", "Be brief.", "--template", refusing, *topics, status=1)
        assert "error[bad-template]: --system: the chat template fails" in capsys.readouterr().err


def test_a_system_message_is_kept_in_the_rows(generate, read):
    rows = read(generate("--count", "2", "--system", "where does"))
    assert all(row["messages"][0] == {"role": "system", "content": "where does"} for row in rows)


@pytest.mark.parametrize("format", ["alpaca", "sharegpt", "prompt-completion", "prompt-completion-chat"])
def test_every_format_holds_the_same_dialogues(generate, read, format):
    from selfaug.self_dialogue import formats

    expected = [row["messages"] for row in read(generate("--count", "3", out="a.jsonl"))]
    found = read(generate("--count", "3", "--format", format, out="b.jsonl"))
    assert [formats.messages(row, format) for row in found] == expected


def test_rendered_prompts_are_what_the_template_makes(generate, read):
    expected = [row["messages"] for row in read(generate("--count", "2", out="a.jsonl"))]
    found = read(generate("--count", "2", "--format", "prompt-completion", "--render", out="b.jsonl"))
    reader = tiny_chat.tokenizer()
    assert [row["prompt"] for row in found] == [
        reader.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True) for turns in expected
    ]


def test_a_goal_in_tokens_counts_what_the_assistant_says(generate, read):
    out = generate("--tokens", "100")
    kept = manifest.read(out)["kept"]
    rows = read(out)
    reader = tiny_chat.tokenizer()
    counted = [len(reader(row["messages"][1]["content"], add_special_tokens=False)["input_ids"]) for row in rows]
    assert kept == {"examples": len(rows), "trained_tokens": sum(counted), "tokens": kept["tokens"]}
    assert sum(counted) >= 100 > sum(counted[:-1])


@pytest.fixture
def spaced(monkeypatch):
    """A model whose answers begin with five spaces, each a token, which the text in the file does not have."""

    class Spaced(generator.TransformersGenerator):
        def write(self, requests, tokens, ending):
            space = self.tokenizer.convert_tokens_to_ids(" ")
            return [[space] * 5 + ids for ids in super().write(requests, tokens, ending)]

    monkeypatch.setitem(generator.BACKENDS, "transformers", Spaced)


@pytest.mark.usefixtures("spaced")
@pytest.mark.parametrize("format", ["messages", "prompt-completion", "sharegpt"])
def test_a_share_of_the_tokens_that_was_generated_is_there_when_it_is_mixed(generate, jsonl, tmp_path, format):
    task = jsonl("task.jsonl", [{"messages": turns} for turns in list(tiny_chat.dialogues())[:9]])
    share = ["--ratio", "0.43", "--by", "tokens", "--task", str(task)]
    out, mixed = generate(*share, "--format", format), tmp_path / "mixed.jsonl"
    assert cli.main(["mix", *share, "--dialogues", str(out), "--out", str(mixed)]) == 0
    assert manifest.read(mixed)["dialogues"] == manifest.read(out)["kept"]


def test_a_ratio_is_a_share_of_the_mixture_with_the_task(generate, read, jsonl):
    task = jsonl("task.jsonl", [{"messages": turns} for turns in list(tiny_chat.dialogues())[:9]])
    assert len(read(generate("--ratio", "0.25", "--task", str(task)))) == 3


def test_the_manifest_says_how_to_make_the_file_again(generate, chat_model):
    out = generate("--count", "4")
    facts = manifest.read(out)
    assert facts["weights_sha256"] == generator.weights_hash(str(chat_model))
    assert facts["file"] == {"name": "out.jsonl", "sha256": sha256(out)}
    assert {name: facts[name] for name in ("temperature", "top_p", "seed", "turns", "batch", "dtype", "device")} == {
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 0,
        "turns": 1,
        "batch": 4,
        "dtype": "float32",
        "device": "cpu",
    }
    report = facts["filters"]["report"]
    assert report["seen"] == report["kept"] + sum(n for name, n in report.items() if name not in ("seen", "kept"))
    assert facts["kept"]["examples"] == report["kept"] == 4
    assert facts["versions"]["transformers"]


def test_rejected_dialogues_are_told_with_their_reason(generate, read, tmp_path):
    log = tmp_path / "rejected.jsonl"
    facts = manifest.read(generate("--count", "6", "--answer-tokens", "17", "--rejected", str(log), "--seed", "3"))
    reasons = [row["reason"] for row in read(log)]
    report = facts["filters"]["report"]
    assert reasons
    assert len(reasons) == report["seen"] - report["kept"]


def test_a_model_whose_dialogues_are_all_bad_is_given_up(generate, capsys):
    generate("--count", "6", "--user-tokens", "3", "--batch", "100", status=1)
    told = capsys.readouterr().err
    assert "error[too-few-kept]" in told
    assert "0 of 500 kept; unfinished" in told


def test_an_existing_file_is_not_overwritten_unasked(generate, tmp_path, capsys):
    (tmp_path / "out.jsonl").write_text("mine\n")
    out = generate("--count", "2", status=1)
    assert out.read_text() == "mine\n"
    assert "error[exists]" in capsys.readouterr().err
    assert generate("--count", "2", "--overwrite").read_text() != "mine\n"


def test_the_file_of_rejected_dialogues_is_not_overwritten_unasked_either(generate, tmp_path, capsys):
    rejected = tmp_path / "rejected.jsonl"
    rejected.write_text("mine\n")
    generate("--count", "2", "--rejected", str(rejected), status=1)
    assert f"error[exists]: {rejected} is there" in capsys.readouterr().err
    assert rejected.read_text() == "mine\n"
    generate("--count", "2", "--rejected", str(tmp_path / "out.jsonl"), status=1)
    assert "the same file" in capsys.readouterr().err
    generate("--count", "2", "--rejected", str(rejected), "--overwrite")
    assert rejected.read_text() != "mine\n"


def test_an_interrupted_run_does_not_replace_a_file_that_it_did_not_write(generate, interrupted, tmp_path):
    rejected = tmp_path / "rejected.jsonl"
    rejected.write_text("mine\n")
    generate("--count", "8", "--rejected", str(rejected), status=1)
    assert rejected.read_text() == "mine\n"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        pytest.param(["--out", "missing/out.jsonl"], "error[no-folder]", id="no folder"),
        pytest.param(["--out", "out.txt"], "error[unknown-file]", id="kind of file"),
        pytest.param(["--rejected", "rejected.txt"], "error[unknown-file]", id="kind of the rejected"),
        pytest.param(["--task", "none.jsonl"], "error[no-file]", id="no task"),
        pytest.param(["--task", "bad.jsonl"], "bad.jsonl:1: columns text", id="malformed task"),
        pytest.param(["--topics", "none.txt"], "error[no-file]", id="no topics"),
        pytest.param(["--topics", "latin-1.txt"], "error[not-text]: latin-1.txt cannot be read", id="Latin-1"),
        pytest.param(["--device", "gpu7"], "error[no-device]: --device gpu7", id="no device"),
        pytest.param(["--device", "cuda:99"], "error[no-device]: --device cuda:99", id="device that is not there"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_loaded(generate, tmp_path, monkeypatch, capsys, options, problem):
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "latin-1.txt").write_bytes("café\n".encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(generator.BACKENDS, "transformers", lambda *arguments: pytest.fail("the model was loaded"))
    size = ["--ratio", "0.2"] if "--task" in options else ["--count", "1"]
    generate(*size, *options, status=1)
    assert problem in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"bad.jsonl", "latin-1.txt"}


@pytest.mark.parametrize("model", ["nowhere/typo", "tokenizer-only"])
def test_a_model_that_cannot_be_loaded_is_named(generate, tmp_path, monkeypatch, capsys, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny_chat.tokenizer().save_pretrained(tmp_path / "tokenizer-only")
    generate("--count", "1", "--model", model, status=1)
    told = capsys.readouterr().err
    assert f"error[no-model]: cannot load {model}" in told
    assert "Traceback" not in told
    assert not (tmp_path / "out.jsonl.log").exists()


def test_a_base_model_without_a_template_is_refused_with_the_option_to_take(chat_model, tmp_path, capsys):
    from selfaug.self_dialogue import cli

    base = tmp_path / "base"
    tiny_chat.model().save_pretrained(base)
    tiny_chat.tokenizer(template=None).save_pretrained(base)
    arguments = [
        "generate",
        "--model",
        str(base),
        "--count",
        "1",
        "--out",
        str(tmp_path / "out.jsonl"),
        "--near",
        "off",
    ]
    assert cli.main(arguments) == 1
    told = capsys.readouterr().err
    assert "error[no-template]" in told
    assert "--template plain" in told


def test_near_duplicates_without_the_library_name_the_command_that_installs_it(generate, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    generate("--count", "1", "--near", "0.8", status=1)
    assert "pip install datasketch" in capsys.readouterr().err


def test_vllm_is_asked_for_with_the_command_that_installs_it(generate, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)
    generate("--count", "1", "--backend", "vllm", status=1)
    assert "pip install vllm" in capsys.readouterr().err


def test_vllm_gets_token_ids_a_seed_per_turn_and_our_ends(generate, read, chat_model, monkeypatch):
    """A stand-in for vLLM, which needs a GPU: its offline interface, answering from a script."""
    seen = []
    reader = AutoTokenizer.from_pretrained(chat_model)

    class LLM:
        def __init__(self, **options):
            config = SimpleNamespace(max_model_len=512, hf_config=SimpleNamespace(), dtype="torch.float32")
            self.llm_engine = SimpleNamespace(model_config=config)

        def get_tokenizer(self):
            return reader

        def generate(self, prompts, settings, use_tqdm):
            seen.extend(zip(prompts, settings))
            said = [
                f"where does {tiny_chat.NAMES[setting.seed % 8]} keep the {tiny_chat.THINGS[setting.seed % 7]} now?"
                for setting in settings
            ]
            ids = [[*reader(text, add_special_tokens=False)["input_ids"], reader.eos_token_id] for text in said]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=row)]) for row in ids]

    stand_in = ModuleType("vllm")
    stand_in.LLM, stand_in.SamplingParams = LLM, lambda **options: SimpleNamespace(**options)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    assert len(read(generate("--count", "2", "--backend", "vllm"))) == 2
    prompts, settings = zip(*seen)
    assert reader.decode(prompts[0]["prompt_token_ids"]) == "<|im_start|>user\n"
    assert len({setting.seed for setting in settings}) == len(settings)
    assert all(reader.eos_token_id in setting.stop_token_ids for setting in settings)
    assert {(setting.temperature, setting.top_p) for setting in settings} == {(0.7, 0.9)}


def test_the_output_of_an_interrupted_write_of_the_manifest_is_made_again(generate, tmp_path, monkeypatch):
    """A crash between the file and its manifest leaves the log; the same command finishes."""
    whole = generate("--count", "4", out="whole.jsonl").read_bytes()
    with monkeypatch.context() as patch:

        def crash(*arguments):
            raise KeyboardInterrupt

        patch.setattr(manifest, "_versions", crash)
        generate("--count", "4", status=130)
    assert (tmp_path / "out.jsonl.log").exists()
    out = generate("--count", "4")
    assert out.read_bytes() == whole
    assert json.loads(manifest.path_of(out).read_text())["file"]["sha256"] == sha256(out)
