"""What a request becomes for the engine: prompts that may begin alike, each with what is computed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.wire.item_messages import ItemRequest
from engine.wire.request_terms import PROMPT_TAIL_TOKENS, Part


@dataclass(frozen=True, slots=True)
class EngineRequests:
    """For each part, `num_choices` requests to the engine.

    The prompt of a part is `shared_ids` followed by the part's own tokens.
    """

    shared_ids: list[int]
    parts: Sequence[Part]
    num_choices: int = 1

    def prompt_of(self, part: Part) -> list[int]:
        """Return the whole prompt of a part."""
        return self.shared_ids + part.token_ids if part.token_ids else self.shared_ids

    def prompt_tail_of(self, part: Part) -> list[int]:
        """Return the last tokens of the prompt of a part, on which the text of its output may depend."""
        last = part.token_ids[-PROMPT_TAIL_TOKENS:]
        rest = PROMPT_TAIL_TOKENS - len(last)
        return self.shared_ids[-rest:] + last if rest else last

    @property
    def num_prompt_tokens(self) -> int:
        """Number of tokens of all prompts, each counted with the beginning that it shares with others."""
        return sum(len(self.shared_ids) + len(part.token_ids) for part in self.parts)

    def as_item(
        self,
        item_id: int = 0,
        epoch: int = 0,
        job_id: str = "",
        priority: int = 0,
        deadline_unix_s: float | None = None,
        memo: bytes = b"",
        owner: str = "",
    ) -> ItemRequest:
        """Return the requests as one item of a job."""
        first, several = self.parts[0], len(self.parts) > 1
        return ItemRequest(
            item_id,
            epoch,
            job_id,
            self.shared_ids if several else self.prompt_of(first),
            first.sampling,
            n=self.num_choices,
            priority=priority,
            deadline_unix_s=deadline_unix_s,
            parts=list(self.parts) if several else [],
            memo=memo,
            owner=owner,
        )
