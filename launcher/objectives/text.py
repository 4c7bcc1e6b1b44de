"""Continued pre-training: cross entropy on every token."""

from __future__ import annotations

from typing import Any

from launcher.objectives.base import Objective


class TextObjective(Objective):
    """Cross entropy per token; all of them are targets."""

    expects_context = False

    def turn_ends(self, format_name: str, tokenizer: Any) -> dict[str, list[int]] | None:
        """As the chat template has it: nothing tells a turn from what follows it where all tokens
        are targets. Without a template the targets do all the same."""
        from launcher.data.chat.turn_ends import by_template

        if format_name == "text":
            return None
        return {str(token): [1, 0] for token in by_template(tokenizer)} or None
