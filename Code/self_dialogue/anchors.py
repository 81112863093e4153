"""Rows of token ids for ``mix --anchors``: task rows with labels at their answers, and dialogues without labels. With
SELFAUG_ANCHORS=1, a dialogue takes SelfAug's KL at all its tokens, where SA-SFT puts the NLL on its answers.
"""

from __future__ import annotations

from typing import Any, Callable

from ..toolkit import training_rows
from ..toolkit.errors import Refusal
from .token_counts import Row

FORMAT = "input_ids and labels"


def task_row(row: Row, tokenizer: Any, plain: bool = False) -> dict[str, list[int]]:
    """The row as {"input_ids", "labels"}, with labels at its last answer.

    Args:
        plain: the tokenizer has the plain template, whose rows get BOS and EOS.

    Raises:
        Refusal: a column would be lost, or the chat template does not take the row.
    """
    content = dict(row.content)
    if row.format != "prompt-completion":
        content = {**content, "messages": row.conversation}
        for name in ("prompt", "completion"):
            content.pop(name, None)

    def tokenised() -> dict[str, list[int]]:
        training_rows.check(content, row.where)
        return training_rows.tokenised(content, row.where, tokenizer, plain=plain)

    return _refused(tokenised)


def anchor(row: Row, tokenizer: Any, plain: bool = False) -> dict[str, list[int]]:
    """The dialogue as {"input_ids", "labels"}, where every label is -100. ``plain``: as in :func:`task_row`.

    Raises:
        Refusal: the chat template does not take it.
    """
    return _refused(lambda: training_rows.unlabelled(row.conversation, row.where, tokenizer, plain))


def _refused(make: Callable[[], dict[str, list[int]]]) -> dict[str, list[int]]:
    try:
        return make()
    except training_rows.RowError as error:
        raise Refusal("malformed-row", str(error)) from None
