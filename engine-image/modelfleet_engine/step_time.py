"""The learned time of one step: t[s] = a + b*sequences + c*prefill_tokens + d*kv_tokens. Pure.

It sizes prompt chunks for the inter-token latency, predicts waits, and is published in `GET /load`.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from modelfleet_api.protocol import StepTime

from modelfleet_engine.step_plan import ProfiledStep

# The terms' order everywhere here.
_TERMS = 4
_PREFILL, _KV = 2, 3
# How much one profiled step counts: a few, so that a hundred real ones outweigh them.
_PROFILE_WEIGHT = 4.0
# The system is solved this often: 25 us of Python, beside steps of milliseconds.
_SOLVE_EVERY_STEPS = 16
# What a prompt token costs to compute over what it costs to be read once: 0.75 ms and 0.8 us for SmolLM2-135M on two
# cores, and of this order for every dense model, for both grow with it. Decides only what the steps leave open: a
# prompt computed in one piece has as many prefill as KV tokens.
_PREFILL_OVER_KV = 1000.0
# A step so many times above the largest seen in some term is outside of what the fit can judge.
_NOVEL_FACTOR = 2.0
# A step may exceed its prediction by this share, or by so many times the usual deviation, before it is cut.
_TOLERATED_SHARE = 0.25
_TOLERATED_DEVIATIONS = 3.0
_DEVIATION_MEMORY = 0.98


class StepTimeFit:
    """Least squares over an exponentially fading window (about 1,000 steps), no coefficient below zero.

    A term that would come out negative is left out and the rest fitted again. Robust to what other processes do to a
    step: one that takes far longer than predicted counts with what is tolerable (winsorized), and a machine that
    became slow for good widens the tolerance within some hundred steps. It begins with the device's profiled steps.
    """

    FADING = 0.999
    # So few steps say nothing about four numbers.
    MINIMUM_STEPS = 8

    def __init__(self, profiled: Rows[ProfiledStep] = ()) -> None:
        self._steps = 0
        self._unsolved_steps = 0
        self._normal = [[0.0] * _TERMS for _ in range(_TERMS)]
        self._right = [0.0] * _TERMS
        self._largest = [0.0] * _TERMS
        self._deviation_seconds = 0.0
        # The coefficients as last solved; None before there is enough to learn from.
        self.latest: StepTime | None = None
        for step in profiled:
            row = (1.0, float(step.sequences), float(step.prefill_tokens), float(step.kv_tokens))
            self._add(row, step.seconds, weight=_PROFILE_WEIGHT)
        self._has_profile = bool(profiled)
        if self._has_profile:
            self.fitted()

    def observe(self, *, sequences: int, prefill_tokens: int, kv_tokens: int, seconds: float) -> None:
        """Adds one measured step."""
        row = (1.0, float(sequences), float(prefill_tokens), float(kv_tokens))
        is_novel = any(value > _NOVEL_FACTOR * largest for value, largest in zip(row, self._largest, strict=True))
        self._steps += 1
        self._unsolved_steps += 1
        if not is_novel:
            seconds = self._believable(row, seconds)
        self._add(row, seconds)
        if is_novel or self.latest is None or self._unsolved_steps >= _SOLVE_EVERY_STEPS:
            self.fitted()

    def fitted(self) -> StepTime | None:
        """The coefficients now, in seconds per unit; None before there is enough to learn from."""
        if self._steps < self.MINIMUM_STEPS and not self._has_profile:
            return None
        active = list(range(_TERMS))
        solution = [0.0] * _TERMS
        while active:
            values = self._solve(active)
            if min(values) >= 0:
                for index, value in zip(active, values, strict=True):
                    solution[index] = value
                break
            active.pop(values.index(min(values)))
        base, per_sequence, per_prefill_token, per_kv_token = solution
        self._unsolved_steps = 0
        self.latest = StepTime(
            base_seconds=base,
            per_sequence_seconds=per_sequence,
            per_prefill_token_seconds=per_prefill_token,
            per_kv_token_seconds=per_kv_token,
            observed_steps=self._steps,
        )
        return self.latest

    def _believable(self, row: Rows[float], seconds: float) -> float:
        """`seconds`, or as much of it as a step of this size may take."""
        if self.latest is None:
            return seconds
        predicted = predict_seconds(self.latest, sequences=row[1], prefill_tokens=row[2], kv_tokens=row[3])
        tolerated = max(_TOLERATED_SHARE * predicted, _TOLERATED_DEVIATIONS * self._deviation_seconds)
        excess = min(seconds - predicted, tolerated)
        self._deviation_seconds += (1 - _DEVIATION_MEMORY) * (abs(excess) - self._deviation_seconds)
        return predicted + excess

    def _add(self, row: Rows[float], seconds: float, *, weight: float = 1.0) -> None:
        self._largest = [max(value, largest) for value, largest in zip(row, self._largest, strict=True)]
        for i, left in enumerate(row):
            self._right[i] = self._right[i] * self.FADING + weight * left * seconds
            for j, right in enumerate(row):
                self._normal[i][j] = self._normal[i][j] * self.FADING + weight * left * right

    def _solve(self, active: list[int]) -> list[float]:
        """Least squares over some of the terms. The ridge is relative, so that units do not matter."""
        matrix = [[self._normal[i][j] for j in active] for i in active]
        for k in range(len(active)):
            matrix[k][k] = matrix[k][k] * (1 + 1e-6) + 1e-12
        if _PREFILL in active and _KV in active:
            prefill, kv = active.index(_PREFILL), active.index(_KV)
            pull = 1e-6 * self._normal[_PREFILL][_PREFILL]
            matrix[prefill][prefill] += pull
            matrix[prefill][kv] -= pull * _PREFILL_OVER_KV
            matrix[kv][prefill] -= pull * _PREFILL_OVER_KV
            matrix[kv][kv] += pull * _PREFILL_OVER_KV**2
        return solve(matrix, [self._right[i] for i in active])


def predict_seconds(step_time: StepTime, *, sequences: float, prefill_tokens: float, kv_tokens: float) -> float:
    """The time of a step of this size by the learned coefficients."""
    return (
        step_time.base_seconds
        + step_time.per_sequence_seconds * sequences
        + step_time.per_prefill_token_seconds * prefill_tokens
        + step_time.per_kv_token_seconds * kv_tokens
    )


def solve(matrix: Rows[Rows[float]], right: Rows[float]) -> list[float]:
    """Solves a small regular linear system by Gaussian elimination with partial pivoting."""
    size = len(right)
    rows = [[*matrix[i], right[i]] for i in range(size)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for i in range(column + 1, size):
            factor = rows[i][column] / rows[column][column]
            for j in range(column, size + 1):
                rows[i][j] -= factor * rows[column][j]
    solution = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (rows[i][size] - known) / rows[i][i]
    return solution
