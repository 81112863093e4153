"""What can go wrong, as the user reads it: what failed, what was expected, what was found, what to do now."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One reason for a refusal. ``id`` is kebab-case and stable; an empty field is left out of the text."""

    id: str
    what: str
    expected: str = ""
    found: str = ""
    do: str = ""
    exit_code: int = 1

    def __str__(self) -> str:
        lines = [f"error[{self.id}]: {self.what}"]
        for label, text in (("expected:", self.expected), ("found:", self.found), ("do:", self.do)):
            if text:
                lines.append(f"  {label:<9} {text}")
        return "\n".join(lines)


class PatcherError(Exception):
    """A refusal or a failure, with all of its problems, and with the state that the environment is left in."""

    def __init__(self, *problems: Problem, state: str = "Nothing was changed.") -> None:
        super().__init__(*problems)
        self.problems = problems
        self.state = state
        self.exit_code = max((problem.exit_code for problem in problems), default=1)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.problems), self.state])
