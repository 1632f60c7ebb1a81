"""One engine in simulated time: continuous batching, chunked prompts, a prefix cache. For judging routers.

A step takes dt = a + b*sequences + c*prefill_tokens, fitted to a real 8B engine on one large GPU. It must not know who
chose it: routers see it through what a gateway can see, or, the omniscient one, through its cache.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

# Of the traces: one hash per so many tokens.
BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """Seconds of a step, and what one engine holds."""

    base_seconds: float = 15.2e-3
    per_sequence_seconds: float = 0.103e-3
    per_prefill_token_seconds: float = 0.0442e-3
    max_sequences: int = 128
    step_tokens: int = 2048
    kv_tokens: int = 573_000

    @property
    def kv_blocks(self) -> int:
        """What of the trace's blocks fits."""
        return self.kv_tokens // BLOCK_TOKENS


@dataclass(slots=True, kw_only=True)
class SimulatedRequest:
    """One request of a trace and what became of it."""

    number: int
    arrives_at: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    engine: int = -1
    cached_tokens: int = 0
    first_token_at: float = math.nan
    ended_at: float = math.nan
    prefill_left: int = 0
    output_left: int = 0
    own_blocks: int = 0


@dataclass(slots=True)
class StepEvents:
    """What a step brought about."""

    first_tokens: list[SimulatedRequest] = field(default_factory=list)
    ended: list[SimulatedRequest] = field(default_factory=list)


class BlockCache:
    """The trace's blocks in one engine's memory: pinned by those who run, or free and least recently used first."""

    def __init__(self, blocks: int) -> None:
        self.free_blocks = blocks
        self._pins: dict[int, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()
        # Since last taken: what a gateway's KV event stream would say.
        self._stored: list[int] = []
        self._evicted: list[int] = []

    def __contains__(self, block: int) -> bool:
        return block in self._pins or block in self._unused

    @property
    def available_blocks(self) -> int:
        """Free, or free to be evicted."""
        return self.free_blocks + len(self._unused)

    def take_events(self) -> tuple[list[int], list[int]]:
        """What was stored and is still here, and what was evicted and is still gone, since this was last asked."""
        stored = [block for block in self._stored if block in self]
        evicted = [block for block in self._evicted if block not in self]
        self._stored, self._evicted = [], []
        return stored, evicted

    def pin(self, block: int) -> None:
        """A running request uses a block that is here."""
        self._unused.pop(block, None)
        self._pins[block] = self._pins.get(block, 0) + 1

    def unpin(self, block: int) -> None:
        """One user less; the last one leaves it to be found again."""
        self._pins[block] -= 1
        if not self._pins[block]:
            del self._pins[block]
            self._unused[block] = None

    def allocate(self, blocks: int) -> None:
        """Takes room for so many; evicts what was not used for the longest time."""
        while self.free_blocks < blocks:
            block, _ = self._unused.popitem(last=False)
            self._evicted.append(block)
            self.free_blocks += 1
        self.free_blocks -= blocks

    def publish(self, block: int) -> bool:
        """A computed block can be found from now on. False: there was one already, this one is private."""
        if block in self:
            return False
        self._pins[block] = 1
        self._stored.append(block)
        return True


class SimulatedEngine:
    """First come, first served. Nothing is preempted: a request starts once its whole KV has room."""

    def __init__(self, profile: EngineProfile) -> None:
        self.profile = profile
        self.cache = BlockCache(profile.kv_blocks)
        self.waiting: deque[SimulatedRequest] = deque()
        self.running: list[SimulatedRequest] = []
        # Blocks of requests that are here and not computed yet: the omniscient router counts them.
        self.promised: Counter[int] = Counter()
        self.computed_tokens = 0
        self.generated_tokens = 0
        self._shared: dict[int, list[int]] = {}

    def submit(self, request: SimulatedRequest) -> None:
        """Joins the queue."""
        self.waiting.append(request)
        self.promised.update(request.blocks)

    def leading_blocks(self, blocks: tuple[int, ...]) -> int:
        """How many of these are in memory, from the first on."""
        return next((k for k, block in enumerate(blocks) if block not in self.cache), len(blocks))

    def promised_blocks(self, blocks: tuple[int, ...]) -> int:
        """The same, with what those who are here will have computed."""
        here = (k for k, block in enumerate(blocks) if block not in self.cache and not self.promised[block])
        return next(here, len(blocks))

    def plan_steps(self) -> tuple[int, float]:
        """How many equal steps come next and the seconds of each; 0 steps: nothing to do."""
        self._admit()
        if not self.running:
            return 0, 0.0
        profile = self.profile
        prefill_left = sum(request.prefill_left for request in self.running)
        if prefill_left:
            budget = profile.step_tokens - sum(not request.prefill_left for request in self.running)
            tokens = min(prefill_left, max(budget, 1))
            seconds = profile.base_seconds + profile.per_sequence_seconds * len(self.running)
            return 1, seconds + profile.per_prefill_token_seconds * tokens
        steps = min(request.output_left for request in self.running)
        return steps, profile.base_seconds + profile.per_sequence_seconds * len(self.running)

    def run_steps(self, steps: int, *, now: float) -> StepEvents:
        """What `plan_steps` planned has happened, or the first so many of it, and ended `now`."""
        events = StepEvents()
        decoding = [request for request in self.running if not request.prefill_left]
        budget = max(self.profile.step_tokens - len(decoding), 1)
        for request in decoding:
            request.output_left -= steps
        self.generated_tokens += steps * len(decoding)
        for request in self.running:
            if request.prefill_left and budget:
                tokens = min(budget, request.prefill_left)
                request.prefill_left -= tokens
                budget -= tokens
                self.computed_tokens += tokens
                if not request.prefill_left:
                    self._finish_prefill(request, events, now=now)
        ended = [request for request in self.running if not request.prefill_left and request.output_left <= 0]
        for request in ended:
            self._release(request)
            request.ended_at = now
        if ended:
            gone = {request.number for request in ended}
            self.running = [request for request in self.running if request.number not in gone]
        events.ended = ended
        return events

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.profile.max_sequences:
            request = self.waiting[0]
            # The last token is always computed: its logits are needed.
            usable = request.blocks[: (request.prompt_tokens - 1) // BLOCK_TOKENS]
            matched = self.leading_blocks(usable)
            own = math.ceil((request.prompt_tokens + request.output_tokens) / BLOCK_TOKENS) - matched
            for block in usable[:matched]:
                self.cache.pin(block)
            if self.cache.available_blocks < own:
                for block in reversed(usable[:matched]):
                    self.cache.unpin(block)
                return
            self.cache.allocate(own)
            self.waiting.popleft()
            request.cached_tokens = matched * BLOCK_TOKENS
            request.prefill_left = request.prompt_tokens - request.cached_tokens
            request.output_left = request.output_tokens
            request.own_blocks = own
            self._shared[request.number] = list(usable[:matched])
            self.running.append(request)

    def _finish_prefill(self, request: SimulatedRequest, events: StepEvents, *, now: float) -> None:
        request.first_token_at = now
        request.output_left -= 1
        self.generated_tokens += 1
        events.first_tokens.append(request)
        shared = self._shared[request.number]
        for block in request.blocks[len(shared) : request.prompt_tokens // BLOCK_TOKENS]:
            if self.cache.publish(block):
                shared.append(block)
                request.own_blocks -= 1
        self.promised.subtract(request.blocks)

    def _release(self, request: SimulatedRequest) -> None:
        self.cache.free_blocks += request.own_blocks
        # The ends of prompts are evicted before their beginnings.
        for block in reversed(self._shared.pop(request.number)):
            self.cache.unpin(block)
