"""A tokenizer's chat template: where a turn begins, and what ends a turn. Rendering marked turns tells both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import Refusal
from .files import UTF8_MARK, read_text
from .messages import Message, check_plain
from .tokens import bare, begun

MARK = "selfaugturn{}mark"  # stands for the text of a turn; no template contains this word
PLAIN = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}User: {{ m.content }}"
    "{% else %}Assistant: {{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\n' }}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class Ending:
    """What ends a turn: one of these tokens or, where a template writes its markers as plain text, a string."""

    tokens: tuple[int, ...]
    strings: tuple[str, ...] = ()


class Chat:
    """Makes the prompts for both sides of a dialogue.

    Args:
        tokenizer: a tokenizer of transformers. Its ``chat_template`` is replaced by a given template.
        template: ``plain``, a Jinja file, or None for the tokenizer's own template.
        eos: token ids that end a text, beside the tokenizer's own.

    Raises:
        Refusal: there is no template, or the template changes the text of turns.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, eos: Sequence[int] = ()) -> None:
        self.tokenizer, self.plain = tokenizer, template == "plain"
        if template is not None:
            if template != "plain" and not Path(template).is_file():
                raise Refusal("no-template", "there is no such template", "plain, or a file with Jinja", template)
            tokenizer.chat_template = PLAIN if template == "plain" else read_text(Path(template))
        if isinstance(tokenizer.chat_template, str):  # the template file of a model may begin with the mark, too
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
        """Token ids of the conversation and the header of the next user turn, for the model to write that turn."""
        turn = {"role": "user", "content": MARK.format("x")}
        text = self._render([*messages, turn], answer=False)
        head = text[: _only(text, turn["content"])]
        return self._prompt(head if head.endswith("\n") else head.rstrip(" "))

    def assistant_prompt(self, messages: Sequence[Message], **arguments: Any) -> list[int]:
        """Token ids of the conversation and the header of the assistant's turn."""
        return self._prompt(self.prompt_text(messages, **arguments))

    def prompt_text(self, messages: Sequence[Message], **arguments: Any) -> str:
        """The conversation and the header of the assistant's turn, as text.

        Args:
            arguments: for the template: ``tools``, ``enable_thinking``. A template ignores those that it does not know.
        """
        return self._render(messages, answer=True, **arguments)

    def text(self, messages: Sequence[Message], **arguments: Any) -> str:
        """The conversation as text, without the header of another turn. Arguments as in :meth:`prompt_text`."""
        return self._render(messages, answer=False, **arguments)

    def shown_prompt(self, messages: Sequence[Message]) -> str:
        """:meth:`prompt_text`, checked: a row that keeps only this text must not lose a message.

        Raises:
            ValueError: the template leaves out a message. Text in front of ``</think>`` may be missing, since many
                templates drop a model's reasoning.
        """
        text = self.prompt_text(messages)
        for index, message in enumerate(messages):
            if message["content"].rpartition("</think>")[2].strip() not in text:
                raise ValueError(f"the chat template does not show message {index + 1} ({message['role']}) as it is")
        return text

    def decode(self, ids: Sequence[int], ending: Ending) -> tuple[str, int, bool]:
        """(text of the turn, its number of tokens, whether the turn has ended). Drops what follows the end."""
        stop = next((at for at, token in enumerate(ids) if token in ending.tokens), None)
        kept = list(ids if stop is None else ids[:stop])
        text = self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        ends = [text.find(string) for string in ending.strings if string in text]
        if ends:
            text = text[: min(ends)]
            return text.strip(), len(bare(self.tokenizer, text)), True
        return text.strip(), len(kept), stop is not None

    def special_texts(self) -> list[str]:
        """The tokenizer's special tokens, as texts. No turn may contain one."""
        return [text for text in self.tokenizer.all_special_tokens if text]

    def _prompt(self, text: str) -> list[int]:
        """Token ids of a prompt. The plain template needs BOS added; any other template writes BOS itself."""
        return begun(self.tokenizer, text) if self.plain else bare(self.tokenizer, text)

    def _render(self, messages: Sequence[Message], answer: bool, **arguments: Any) -> str:
        try:
            if self.plain:  # checked here, since another text of the template would end what was begun with this one
                check_plain(messages)
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answer, **arguments
            )
        except Exception as error:  # a template may raise any error
            raise Refusal(
                "bad-template", "the chat template fails", found=f"{type(error).__name__}: {error}"
            ) from error
        return str(text)

    def _between(self, messages: Sequence[Message], first: str, second: str) -> str:
        text = self._render(messages, answer=False)
        return text[_only(text, first) + len(first) : _only(text, second)]

    def _ending(self, between: str) -> Ending:
        """The ending, from the text between two turns: the first special token there, else the first line of text.
        The EOS tokens end every turn, too.
        """
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
        count = f"the text of a turn {text.count(mark)} times"
        raise Refusal("bad-template", "the chat template does not show each turn's text once, as it is", found=count)
    return text.index(mark)
