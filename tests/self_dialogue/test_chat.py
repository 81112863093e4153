"""The template, taken apart: prompts end where a turn's text begins, and turns end where the template says."""

from __future__ import annotations

import pytest
from tiny_chat import CHATML, LLAMA2, tokenizer

from selfaug.toolkit.chat import Chat, Ending
from selfaug.toolkit.errors import Refusal

ASKED = {"role": "user", "content": "where does ada keep the bread now?"}
SAID = {"role": "assistant", "content": "ada keeps the bread in a small old town"}


def shown(chat, ids):
    return chat.tokenizer.decode(ids)


def test_chatml_turns_begin_after_their_header_and_end_with_its_token():
    chat = Chat(tokenizer(CHATML))
    assert shown(chat, chat.user_prompt([])) == "<|im_start|>user\n"
    assert shown(chat, chat.assistant_prompt([ASKED])).endswith("now?<|im_end|>\n<|im_start|>assistant\n")
    assert shown(chat, chat.user_prompt([ASKED, SAID])).endswith("old town<|im_end|>\n<|im_start|>user\n")
    assert chat.user_ending == chat.assistant_ending == Ending((2,))


def test_a_template_that_writes_its_system_message_shows_it_in_the_bare_user_turn():
    chat = Chat(
        tokenizer("{% if messages[0].role != 'system' %}<|im_start|>system\nada<|im_end|>\n{% endif %}" + CHATML)
    )
    assert shown(chat, chat.user_prompt([])) == "<|im_start|>system\nada<|im_end|>\n<|im_start|>user\n"


def test_markers_that_are_no_tokens_end_a_turn_as_text():
    chat = Chat(tokenizer(LLAMA2))
    assert shown(chat, chat.user_prompt([])) == "[INST]"
    assert chat.user_ending == Ending((2,), ("[/INST]",))
    assert chat.assistant_ending == Ending((2,), ("[INST]",))


def test_the_plain_template_serves_models_that_have_none():
    chat = Chat(tokenizer(None), "plain")
    assert chat.prompt_text([ASKED]) == f"User: {ASKED['content']}\n\nAssistant:"
    assert chat.user_ending.strings == ("Assistant:",)
    assert chat.assistant_ending.strings == ("User:",)


def test_the_models_own_end_ends_a_turn_too():
    assert Chat(tokenizer(CHATML), eos=[7]).user_ending == Ending((2, 7))


def test_a_turn_is_cut_at_its_end_and_counted_without_it():
    chat = Chat(tokenizer(CHATML))
    ids = chat.tokenizer(" ada keeps the bread<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert chat.decode(ids, chat.user_ending) == ("ada keeps the bread", 4, True)
    assert chat.decode(ids[:3], chat.user_ending) == ("ada keeps the", 3, False)


def test_a_turn_is_cut_at_the_text_that_ends_it():
    chat = Chat(tokenizer(LLAMA2))
    ids = chat.tokenizer("ada keeps [/INST] bread", add_special_tokens=False)["input_ids"]
    text, _, finished = chat.decode(ids, Ending((2,), ("[/INST]",)))
    assert (text, finished) == ("ada keeps", True)


def test_a_special_token_inside_a_turn_stays_visible():
    chat = Chat(tokenizer(CHATML))
    ids = chat.tokenizer("ada<|im_start|> keeps<|im_end|>", add_special_tokens=False)["input_ids"]
    assert chat.decode(ids, chat.user_ending)[0] == "ada<|im_start|> keeps"


@pytest.mark.parametrize(
    ("template", "id"),
    [
        pytest.param(None, "no-template", id="none"),
        pytest.param("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "bad-template", id="changes-text"),
        pytest.param("{{ raise_exception('no') }}", "bad-template", id="raises"),
        pytest.param("{% for m in messages %}{{ m.content }}{% endfor %}", "bad-template", id="no-marker"),
    ],
)
def test_a_template_that_hides_the_turns_is_refused(template, id):
    with pytest.raises(Refusal) as refused:
        Chat(tokenizer(template))
    assert refused.value.id == id


def test_a_template_that_is_not_utf8_is_refused(tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_bytes("{# café #}".encode("latin-1"))
    with pytest.raises(Refusal, match=r"error\[not-text\]: \S+chat\.jinja cannot be read"):
        Chat(tokenizer(None), str(file))
