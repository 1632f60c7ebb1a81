"""The device as the engine loop sees it: `load_model` makes one, `ThreadDevice` runs steps on a thread of its own.

Must not know requests, text or HTTP: plans in, token ids out (`step_plan` is the contract). torch is imported only
when a model is loaded.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modelfleet_api.engine_config import EngineConfig

from modelfleet_engine.errors import ModelError
from modelfleet_engine.step_plan import Device, ProfiledStep, StepPlan, StepResult

__all__ = ["DeviceClosedError", "LoadedModel", "ModelError", "ThreadDevice", "load_model"]


class DeviceClosedError(RuntimeError):
    """A step was submitted to, or waited for on, a device that is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run steps, with every size resolved. `phases` are seconds per phase of the start, in order.

    `profiled_steps` were measured before the first request; `full_step_seconds` is what a step of the whole token
    budget takes by them.
    """

    device: Device
    kv_blocks: int
    block_tokens: int
    kv_block_bytes: int
    max_model_len: int
    vocab_size: int
    dtype: str
    backend: str
    phases: Mapping[str, float]
    profiled_steps: tuple[ProfiledStep, ...]
    full_step_seconds: float


def load_model(config: EngineConfig) -> LoadedModel:
    """Reads, packs and profiles the model in `config.model_path`.

    Raises:
        ModelError: the model or the configuration cannot be served.
    """
    _bound_openmp_spinning()
    _bound_compiled_products()
    from modelfleet_engine.model_loader import load_runner

    loaded = load_runner(config)
    return LoadedModel(
        device=ThreadDevice(loaded.runner.run),
        kv_blocks=loaded.cache.blocks,
        block_tokens=config.block_tokens,
        kv_block_bytes=loaded.cache.block_bytes,
        max_model_len=loaded.cache.max_model_len,
        vocab_size=loaded.model.vocab_size,
        dtype=str(loaded.dtype).removeprefix("torch."),
        backend=loaded.backend,
        phases=dict(loaded.phases.seconds),
        profiled_steps=loaded.profile.steps,
        full_step_seconds=loaded.profile.full_step_seconds(config.max_num_batched_tokens),
    )


def _bound_openmp_spinning() -> None:
    """Lets idle OpenMP threads sleep after half a millisecond. libgomp reads this once, when torch is loaded.

    Its default spins for about 13 ms at every barrier. On shared cores the spinning thread then burns the time slice
    its own partner needs: a 27 ms step took 440-790 ms beside a compiler on 2 cores, and 65-100 ms with this bound,
    which costs nothing measurable on idle cores. Whoever sets a policy of their own keeps it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _bound_compiled_products() -> None:
    """Lets oneDNN keep 256 compiled products instead of 1024. Read once, when torch is loaded.

    Each is 0.6 to 0.8 MB and takes about a millisecond to compile. The kernels round their shapes so that a model meets
    fewer of them; whatever else comes must not fill 700 MB that no memory plan knows of.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


class ThreadDevice:
    """Runs `run_step` for each submitted plan on one worker thread: first in, first out, one at a time.

    What a step raises is raised by the `wait` for it, and again by every later `wait`: the state of the device is
    unknown then, so no step runs after a failed one.
    """

    def __init__(self, run_step: Callable[[StepPlan], StepResult]) -> None:
        self._run_step = run_step
        self._plans: queue.SimpleQueue[StepPlan | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[StepResult | BaseException] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._failure: BaseException | None = None
        self._waiting_for = 0
        self._worker = threading.Thread(target=self._work, name="modelfleet-device", daemon=True)
        self._worker.start()

    def submit(self, plan: StepPlan) -> None:
        """Queues one step and returns at once.

        Raises:
            DeviceClosedError: after `close`.
        """
        with self._lock:
            if self._is_closed:
                raise DeviceClosedError(f"step {plan.step_id} submitted to a closed device")
            self._waiting_for += 1
            self._plans.put(plan)

    def wait(self) -> StepResult:
        """Blocks until the oldest submitted step is done. Raises what the step raised.

        Raises:
            RuntimeError: no submitted step is left to wait for (it would block for ever).
            DeviceClosedError: the device was closed before the step ran.
        """
        with self._lock:
            if self._waiting_for == 0:
                raise RuntimeError("wait() without a submitted step")
            self._waiting_for -= 1
        outcome = self._outcomes.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def close(self) -> None:
        """Waits for the step that runs, drops those that have not begun, ends the thread. Idempotent."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._plans.put(None)
        if threading.current_thread() is not self._worker:
            self._worker.join()

    def _work(self) -> None:
        while (plan := self._plans.get()) is not None:
            self._outcomes.put(self._outcome(plan))

    def _outcome(self, plan: StepPlan) -> StepResult | BaseException:
        if self._failure is not None:
            return self._failure
        if self._is_closed:
            return DeviceClosedError(f"step {plan.step_id} was dropped: the device is closed")
        try:
            return self._run_step(plan)
        except BaseException as error:  # carried to wait(), which raises it
            self._failure = error
            return error
