"""A tokenizer's own chat template, taken apart by rendering it: where a turn begins, and what ends it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal
from ..toolkit.files import UTF8_MARK, read_text
from ..toolkit.tokens import bare, begun

Message = dict[str, Any]
MARK = "selfaugturn{}mark"  # stands for a turn's text; no template knows it
PLAIN = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}User: {{ m.content }}"
    "{% else %}Assistant: {{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\n' }}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class Ending:
    """What ends a turn: one of some token ids or, for templates that spell their markers out, a string."""

    tokens: tuple[int, ...]
    strings: tuple[str, ...] = ()


class Chat:
    """Prompts for both sides of a dialogue. ``template``: ``plain``, a Jinja file, or None for the tokenizer's own.

    Raises:
        Refusal: there is no template, or it does not show the turns as they are.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, eos: Sequence[int] = ()) -> None:
        self.tokenizer, self.plain = tokenizer, template == "plain"
        if template is not None:
            if template != "plain" and not Path(template).is_file():
                raise Refusal("no-template", "there is no such template", "plain, or a file with Jinja", template)
            tokenizer.chat_template = PLAIN if template == "plain" else read_text(Path(template))
        if isinstance(tokenizer.chat_template, str):  # a template file beside the model may have the mark, too
            tokenizer.chat_template = tokenizer.chat_template.lstrip(UTF8_MARK)
        if not tokenizer.chat_template:
            raise Refusal(
                "no-template",
                "the tokenizer has no chat template, as is usual for base models",
                do="--template plain (User: … / Assistant: …), or --template FILE with the Jinja of a chat template",
            )
        self.sha256 = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
        self._eos = {token for token in [*eos, tokenizer.eos_token_id] if token is not None}
        user, assistant, more = ({"role": role, "content": MARK.format(i)} for i, role in enumerate(_ROLES))
        self.user_ending = self._ending(self._between([user, assistant], user["content"], assistant["content"]))
        self.assistant_ending = self._ending(
            self._between([user, assistant, more], assistant["content"], more["content"])
        )

    def user_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Up to the place where the next user turn's text begins: the bare header, for the model to go on."""
        turn = {"role": "user", "content": MARK.format("x")}
        text = self._render([*messages, turn], answer=False)
        head = text[: _only(text, turn["content"])]
        return self._prompt(head if head.endswith("\n") else head.rstrip(" "))

    def assistant_prompt(self, messages: Sequence[Message]) -> list[int]:
        return self._prompt(self.prompt_text(messages))

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The conversation so far and the assistant's header."""
        return self._render(messages, answer=True)

    def shown_prompt(self, messages: Sequence[Message]) -> str:
        """:meth:`prompt_text` for a row, which would lose what the template does not show.

        Raises:
            ValueError: it passes over a message; text in front of ``</think>``, which many templates drop, may go.
        """
        text = self.prompt_text(messages)
        for index, message in enumerate(messages):
            if message["content"].rpartition("</think>")[2].strip() not in text:
                raise ValueError(f"the chat template does not show message {index + 1} ({message['role']}) as it is")
        return text

    def decode(self, ids: Sequence[int], ending: Ending) -> tuple[str, int, bool]:
        """A turn's text, its tokens, and whether it has come to its end. What follows the end is dropped."""
        stop = next((at for at, token in enumerate(ids) if token in ending.tokens), None)
        kept = list(ids if stop is None else ids[:stop])
        text = self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        places = [text.find(string) for string in ending.strings if string in text]
        if places:
            text = text[: min(places)]
            return text.strip(), len(bare(self.tokenizer, text)), True
        return text.strip(), len(kept), stop is not None

    def special_texts(self) -> list[str]:
        """Texts that no turn may contain: the tokenizer's special tokens."""
        return [text for text in self.tokenizer.all_special_tokens if text]

    def _prompt(self, text: str) -> list[int]:
        """A chat template writes its special tokens; ours is plain text, which begins as the tokenizer has it begin."""
        return begun(self.tokenizer, text) if self.plain else bare(self.tokenizer, text)

    def _render(self, messages: Sequence[Message], answer: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)
        except Exception as error:  # a template may raise what it likes
            raise Refusal(
                "bad-template", "the chat template fails", found=f"{type(error).__name__}: {error}"
            ) from error
        return str(text)

    def _between(self, messages: Sequence[Message], first: str, second: str) -> str:
        text = self._render(messages, answer=False)
        return text[_only(text, first) + len(first) : _only(text, second)]

    def _ending(self, between: str) -> Ending:
        """Of the text between two turns: its first special token, else its first words, and the model's own end."""
        specials = set(self.tokenizer.all_special_ids) | set(getattr(self.tokenizer, "added_tokens_decoder", {}))
        marker = next((token for token in bare(self.tokenizer, between) if token in specials), None)
        if marker is not None:
            return Ending(tuple(sorted(self._eos | {marker})))
        words = between.strip().split("\n")[0]
        if not words:
            raise Refusal("bad-template", "nothing in the chat template marks the end of a turn", found=repr(between))
        return Ending(tuple(sorted(self._eos)), (words,))


_ROLES = ("user", "assistant", "user")


def _only(text: str, mark: str) -> int:
    if text.count(mark) != 1:
        found = f"it appears {text.count(mark)} times"
        raise Refusal("bad-template", "the chat template does not show each turn's text once, as it is", found=found)
    return text.index(mark)
