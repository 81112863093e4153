"""What a template supports, and each check with an answer that passes and answers that do not."""

from __future__ import annotations

import json

import pytest

from selfaug.retention import obedience, probes, question_cases, system_cases, tool_calls, tool_cases
from selfaug.retention.base_model import BaseModel
from selfaug.toolkit.chat import Chat

TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
CALL = '{"name": "f", "arguments": {"a": 1}}'


@pytest.fixture
def chat(tiny_model, tmp_path):
    def make(template):
        (tmp_path / "t.jinja").write_text(template, encoding="utf-8")
        return Chat(BaseModel(str(tiny_model), "float32", "cpu").tokenizer, str(tmp_path / "t.jinja"))

    return make


def test_a_template_with_everything_gets_every_probe(chat):
    found, left_out = probes.collect(chat(TOOLS))
    assert left_out == {}
    assert {probe.name for probe in found} == set(probes.METRICS)
    assert min(map(len, (tool_cases.CASES, system_cases.CASES, question_cases.CASES))) >= 40


@pytest.mark.parametrize(
    ("old", "new", "name", "reason"),
    [
        ("{% if tools %}{{ tools | tojson }}{% endif %}", "", "tools", "ignores tools"),
        ("<tool_call>", "<other>call ", "tools", "cannot read"),
        ("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}", "system", "ignores system"),
        ("enable_thinking is defined", "false", "thinking", "no enable_thinking"),
        ("<think>\n\n</think>", "[quick]", "thinking", "something else"),
    ],
)
def test_a_probe_that_the_template_does_not_support_is_left_out_with_the_reason(chat, old, new, name, reason):
    found, left_out = probes.collect(chat(TOOLS.replace(old, new)))
    assert reason in left_out[name]
    assert len(left_out) == 1
    assert name not in {probe.name for probe in found}


def test_a_header_that_tells_how_calls_are_written_does_not_stand_in_their_way(chat):
    told = "{% if tools %}Write each call behind <tool_call> as JSON. {{ tools | tojson }}{% endif %}"
    _, left_out = probes.collect(chat(TOOLS.replace("{% if tools %}{{ tools | tojson }}{% endif %}", told)))
    assert left_out == {}


@pytest.mark.parametrize(
    "text",
    [CALL, f"Sure.<tool_call>\n{CALL}\n</tool_call>", f"[TOOL_CALLS] [{CALL}]", '[TOOL_CALLS]f[ARGS]{"a": 1}',
     CALL.replace("arguments", "parameters")],
)  # fmt: skip
def test_calls_are_read_in_the_forms_of_the_families(text):
    assert tool_calls.read(text) == [("f", {"a": 1})]


@pytest.mark.parametrize(
    "text", ["", "f(a=1)", CALL[:-1], f"<tool_call>{CALL[:-2]}</tool_call>", '{"name": "f"}', "[]"]
)
def test_what_is_no_valid_call_is_not_read(text):
    assert tool_calls.read(text) == []


@pytest.mark.parametrize("ours", [{"a": "1", "b": True}, {"a": 1}, {"a": 1, "b": 1}, {"a": 2, "b": True}])
def test_arguments_need_the_right_names_types_and_values(ours):
    assert tool_calls.same_arguments({"a": 1.0, "b": True}, {"a": 1, "b": True})
    assert not tool_calls.same_arguments(ours, {"a": 1, "b": True})


@pytest.mark.parametrize(
    ("check", "given", "good", "bad"),
    [
        ("language", "fr", "Le ciel est bleu dans la lumière du jour.", "The sky is blue in the light of day."),
        ("language", "de", "Der Himmel ist blau und nicht grün.", "El cielo es azul y no verde."),
        ("language", "es", "El cielo es azul por la luz.", "Le ciel est bleu avec le jour."),
        ("begins", "Ahoy", "Ahoy! The sky is very blue.", "The sky is blue, so ahoy."),
        ("ends", "At your service.", "The sky is blue. At your service.", "At your service: the sky is blue."),
        ("names", "Zed-9", "I am Zed-9, a helpful robot.", "I am a robot without name."),
        ("capitals", "", "THE SKY IS VERY BLUE.", "THE SKY is VERY BLUE."),
        ("dashes", "3", "- one thing\n- two things\n- three", "- one thing\n- two things and more"),
        ("json", "answer", '{"answer": "the sky is blue"}', 'Here: {"answer": "the sky is blue"}'),
    ],
)
def test_a_system_prompt_is_obeyed_or_not(check, given, good, bad):
    assert obedience.obeyed(good, check, given)
    assert not obedience.obeyed(bad, check, given)
    assert not obedience.obeyed(given, check, given)
    assert not obedience.obeyed("", check, given)


def test_thinking_is_a_thought_when_on_and_a_plain_right_answer_when_off():
    on, off = probes._thinking_check(False), probes._no_thinking_check(("Paris",))
    thought = "<think>\nThey ask for a capital.\n</think>\nParis"
    assert on(thought) == {"thinking_on": 1}
    assert on("Paris") == on("<think></think>Paris") == {"thinking_on": 0}
    assert off("Paris.") == {"thinking_off": 1}
    assert off(thought) == off("") == {"thinking_off": 0}


def test_a_question_is_passed_by_its_answer_and_not_by_an_order_number():
    check = probes._question_check(("Paris",))
    assert (check("It is Paris."), check("4711"), check("<think>Paris")) == (
        {"questions": 1}, {"questions": 0}, {"questions": 0},
    )  # fmt: skip


def test_the_command_measures_the_probes_and_says_what_was_left_out(
    measured, adapters, files, items, result, monkeypatch
):
    monkeypatch.setattr(probes, "LIMIT", 2)
    output = measured("--adapter", f"far={adapters['far']}", "--probes")
    assert "probe tools left out: the chat template ignores tools" in output
    figures = result()["models"]["far"]["questions"]
    assert figures["low"] <= figures["mean"] <= figures["high"]
    assert figures["items"] == len(question_cases.CASES)
    assert len(items("far")["probes"]) == len(question_cases.CASES) + len(system_cases.CASES)
    page = (files / "out" / "retention.md").read_text(encoding="utf-8")
    assert "## Probes" in page
    assert "Left out: tools" in page
    assert json.loads((files / "out" / "retention.json").read_text())["settings"]["probes"]["limit"] == 2
