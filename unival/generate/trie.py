"""A closed set of answers as a prefix tree of tokens (specification 8.3).

Answers "yes" and "yes please" as ids [80] and [80, 91]: after () comes 80; after (80,) comes `</s>` or 91.
"""

from collections.abc import Sequence

from unival.errors import UserError


class AnswerTrie:
    """Which token may follow, when only some answers may be written.

    Args:
        answers: Token ids of each answer, without `<s>` and `</s>`. Repeated answers count once.
        eos_id: Ends every answer.

    Attributes:
        eos_id: As given.

    Raises:
        UserError: If there is no answer, or one is empty.
    """

    def __init__(self, answers: Sequence[Sequence[int]], eos_id: int) -> None:
        if not answers or not all(answers):
            raise UserError("a closed set of answers needs at least one answer, and no empty one", "candidates")
        children: dict[tuple[int, ...], dict[int, None]] = {}
        for answer in answers:
            path = (*answer, eos_id)
            for length, token in enumerate(path):
                children.setdefault(path[:length], {})[token] = None
        self._children = {path: list(tokens) for path, tokens in children.items()}
        self.eos_id = eos_id

    def children(self, path: Sequence[int]) -> list[int]:
        """Return the tokens that may follow the tokens written so far; none where no answer starts like that."""
        return self._children.get(tuple(path), [])

    def branches(self) -> list[tuple[int, ...]]:
        """Return the paths after which there is a choice, shorter ones first."""
        return sorted((path for path, tokens in self._children.items() if len(tokens) > 1), key=len)
