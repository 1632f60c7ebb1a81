"""The choices of one call (`n` > 1): one of them computes the prompt, the others wait for it and fork. Pure.

While the first one, the leader, computes the prompt the others are parked: out of the waiting queue, so that they
block nobody. Any member whose blocks hold the whole prompt can be forked from. If the leader loses its place before
it got there the others return to the queue, and the first of them that is admitted leads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from modelfleet_engine.sequence import Sequence


@dataclass(slots=True)
class _Group:
    prompt_token_ids: tuple[int, ...]
    cache_salt: str
    members: int = 0
    leader: Sequence | None = None
    # Ordered sets.
    parked: dict[Sequence, None] = field(default_factory=dict)
    sources: dict[Sequence, None] = field(default_factory=dict)
    # What the first leader found in the prefix cache: what every choice reports.
    cached_tokens: int | None = None


class RequestGroups:
    """Who shares a prompt with whom. Requests without a group pass through untouched."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self.parked_sequences = 0

    def join(self, sequence: Sequence) -> None:
        """A request is live. Raises ValueError if its prompt or salt is not its group's."""
        request = sequence.request
        if not request.group_id:
            return
        group = self._groups.get(request.group_id)
        if group is None:
            group = _Group(prompt_token_ids=request.prompt_token_ids, cache_salt=request.cache_salt)
            self._groups[request.group_id] = group
        elif (group.prompt_token_ids, group.cache_salt) != (request.prompt_token_ids, request.cache_salt):
            raise ValueError(f"request {request.request_id} has another prompt or salt than its group")
        group.members += 1

    def leave(self, sequence: Sequence) -> None:
        """A request ended; it has lost its place, if it had one, before."""
        group = self._group_of(sequence)
        if group is None:
            return
        if sequence in group.parked:
            del group.parked[sequence]
            self.parked_sequences -= 1
        group.members -= 1
        if group.members == 0:
            del self._groups[sequence.request.group_id]

    def must_wait(self, sequence: Sequence) -> bool:
        """Whether another member is about to have computed what this one needs."""
        group = self._group_of(sequence)
        return group is not None and sequence.can_fork and group.leader is not None and not group.sources

    def park(self, sequence: Sequence) -> None:
        """Puts a sequence that must wait aside; `released` or `computed` gives it back."""
        group = self._group_of(sequence)
        if group is None:
            raise RuntimeError(f"request {sequence.request.request_id} has no group to wait for")
        group.parked[sequence] = None
        self.parked_sequences += 1

    def source_for(self, sequence: Sequence) -> Sequence | None:
        """A member to fork from; None if this one must compute the prompt itself."""
        group = self._group_of(sequence)
        if group is None or not sequence.can_fork:
            return None
        return next(iter(group.sources), None)

    def started(self, sequence: Sequence) -> None:
        """A sequence got a place, and found `computed_tokens` tokens; it leads if nobody does."""
        group = self._group_of(sequence)
        if group is None:
            return
        # One that comes back with tokens of its own may have nothing of the prompt left to compute.
        if not group.sources and group.leader is None and not sequence.output_token_ids:
            group.leader = sequence
        if group.cached_tokens is None:
            group.cached_tokens = sequence.computed_tokens
        sequence.cached_tokens = group.cached_tokens

    def computed(self, sequence: Sequence) -> list[Sequence]:
        """The whole prompt of a sequence is planned; returns who waited for that and may fork in the next step."""
        group = self._group_of(sequence)
        if group is None:
            return []
        group.sources[sequence] = None
        return self._unpark(group)

    def released(self, sequence: Sequence) -> list[Sequence]:
        """A sequence loses its blocks; returns who waited for it in vain."""
        group = self._group_of(sequence)
        if group is None:
            return []
        group.sources.pop(sequence, None)
        return self._unpark(group) if group.leader is sequence else []

    def _group_of(self, sequence: Sequence) -> _Group | None:
        group_id = sequence.request.group_id
        return self._groups[group_id] if group_id else None

    def _unpark(self, group: _Group) -> list[Sequence]:
        group.leader = None
        parked, group.parked = list(group.parked), {}
        self.parked_sequences -= len(parked)
        return parked
