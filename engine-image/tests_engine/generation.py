"""The product's scheduler and model runner generating together, without the threads around them."""

from __future__ import annotations

from collections import deque

from modelfleet_engine.model_runner import ModelRunner
from modelfleet_engine.request import GenerationRequest
from modelfleet_engine.scheduler import PlannedStep, Scheduler, SchedulerLimits

from tests_engine.model_fixtures import GREEDY


class Generation:
    """Greedy outputs, planned one step ahead of the results. Keeps its scheduler (and so its cache) between runs."""

    def __init__(self, runner: ModelRunner, limits: SchedulerLimits) -> None:
        self._runner = runner
        self.scheduler = Scheduler(limits)
        self.plans: list[PlannedStep] = []

    def run(self, prompts: list[tuple[int, ...]], *, output_tokens: int) -> list[list[int]]:
        """All prompts to their full output, submitted at once."""
        outputs: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
        for request_id, prompt in zip(outputs, prompts, strict=True):
            request = GenerationRequest(
                request_id=request_id, prompt_token_ids=prompt, sampling=GREEDY, max_tokens=output_tokens
            )
            self.scheduler.add(request)
        in_flight: deque[PlannedStep] = deque()
        while self.scheduler.has_work:
            planned = self.scheduler.plan_step(0.0)
            if planned is not None:
                self.plans.append(planned)
                in_flight.append(planned)
            if len(in_flight) > 1 or planned is None:
                step = self.scheduler.complete_step(self._runner.run(in_flight.popleft().plan))
                for request_id, token_id in zip(step.request_ids, step.token_ids, strict=True):
                    outputs[request_id].append(token_id)
        return list(outputs.values())
