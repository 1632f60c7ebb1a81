"""From options to a serving process and its exit code: open the port, load, serve, drain.

The port opens before the model loads, so that probes are answered and /ready says which phase it is.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import uvloop
from aiohttp import web
from modelfleet_api.engine_config import EngineConfig

from modelfleet_engine.admission import QueueLimits
from modelfleet_engine.background import in_daemon_thread, timed
from modelfleet_engine.bridge import Bridge
from modelfleet_engine.drain import FLUSH_SECONDS, Drain
from modelfleet_engine.errors import ExitCode, GenerationCutError, ModelError
from modelfleet_engine.http.app import build_app
from modelfleet_engine.http.headers import MAX_HEADER_BYTES
from modelfleet_engine.internal_key import InternalKey
from modelfleet_engine.logs import configure_logging, log_event
from modelfleet_engine.process_end import exit_process, explain, tell
from modelfleet_engine.scheduler import Scheduler, SchedulerLimits
from modelfleet_engine.serving import PHASE_READY, LoadedDevice, ReadyModel, Serving
from modelfleet_engine.settings import ServeOptions
from modelfleet_engine.tokenizer import ModelTokenizer
from modelfleet_engine.tracing import Tracer

# Beyond what /health already calls stuck: nobody restarted us, so the process ends by itself.
HUNG_STEP_SECONDS = 120.0
HUNG_FULL_STEPS = 80
WATCHDOG_PERIOD_SECONDS = 1.0
# The queue holds this many sequences per running place, and at least MINIMUM_QUEUE.
QUEUE_PER_SLOT = 8
MINIMUM_QUEUE = 64

Loader = Callable[[EngineConfig], LoadedDevice]


def load_engine_model(config: EngineConfig) -> LoadedDevice:
    """The real loader; imported late because it brings torch."""
    from modelfleet_engine.device import load_model

    return load_model(config)


def serve(options: ServeOptions, *, started_seconds: float, loader: Loader = load_engine_model) -> NoReturn:
    """Serves until SIGTERM and a finished drain, or a failure; then ends the process with the code of that."""
    configure_logging()
    code = uvloop.run(Server(options, started_seconds=started_seconds, loader=loader).run())
    # Not by returning: destructors of torch's thread pools may abort at exit (seen with Debian's torch 2.6), which
    # would turn a clean drain into exit code 134.
    exit_process(code)


class Server:
    """One serving process. `started_seconds` is the monotonic time of the process's start."""

    def __init__(self, options: ServeOptions, *, started_seconds: float, loader: Loader) -> None:
        self._options = options
        self._config = options.config
        self._started_seconds = started_seconds
        self._loader = loader
        self._serving = Serving(
            config=options.config,
            drain=Drain(
                accept_seconds=options.config.accept_after_sigterm_seconds,
                drain_seconds=options.config.drain_timeout_seconds,
            ),
            tokenizer_pool=ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenizer"),
            internal_key=InternalKey(options.config.internal_key_path),
        )
        self._outcome: asyncio.Future[ExitCode] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> ExitCode:
        """Opens the port, starts loading, and waits for the end."""
        loop = asyncio.get_running_loop()
        try:
            self._configure_access()
        except ModelError as error:
            return explain(error)
        self._outcome = loop.create_future()
        loop.add_signal_handler(signal.SIGTERM, self._on_terminate)
        loop.add_signal_handler(signal.SIGINT, self._on_interrupt)
        runner = web.AppRunner(
            build_app(self._serving),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=FLUSH_SECONDS,
            max_field_size=MAX_HEADER_BYTES,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._options.host, self._config.port).start()
            port = runner.addresses[0][1]
            log_event("listening", host=self._options.host, port=port, model=self._config.served_model_name)
            self._spawn(self._start())
            return await self._outcome
        except OSError as error:
            # A port that is taken or an address that is not ours: the user's to mend, no traceback.
            return tell(f"cannot listen on {self._options.host}:{self._config.port}: {error}", ExitCode.BUG)
        finally:
            for task in self._tasks:
                task.cancel()
            if self._serving.model is not None:
                self._serving.model.bridge.kv_events.close()
                self._serving.model.bridge.close()
            await runner.cleanup()
            self._serving.tokenizer_pool.shutdown(wait=False)
            await self._flush_traces()

    def _configure_access(self) -> None:
        """Who may ask, and where traces go. Raises ModelError where the configuration cannot be honoured."""
        self._serving.internal_key.check_readable()
        if self._config.otlp_endpoint is not None:
            self._serving.tracer = Tracer(self._config.otlp_endpoint)

    async def _flush_traces(self) -> None:
        """Sends the last spans, for as long as clients of cut requests would get: a collector may be gone too."""
        tracer = self._serving.tracer
        if tracer is None:
            return
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await in_daemon_thread(tracer.shutdown)
        except TimeoutError:
            log_event("traces_dropped", waited_seconds=FLUSH_SECONDS)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._on_task_done)
        self._tasks.append(task)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """A background task that fails is a failure of the process."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)

    async def _start(self) -> None:
        """Loads tokenizer and model side by side, then begins to serve."""
        serving = self._serving
        serving.start_phases["imports"] = time.monotonic() - self._started_seconds
        serving.phase = "loading"
        tokenizer_task = asyncio.get_running_loop().run_in_executor(
            serving.tokenizer_pool, timed, ModelTokenizer, Path(self._config.model_path)
        )
        loaded, load_seconds = await in_daemon_thread(lambda: timed(self._loader, self._config))
        tokenizer, tokenizer_seconds = await tokenizer_task
        serving.start_phases["tokenizer"] = tokenizer_seconds
        # What the loader does not account for is the import of its libraries.
        serving.start_phases["import_torch"] = load_seconds - sum(loaded.phases.values())
        serving.start_phases.update(loaded.phases)
        serving.model = self._ready_model(loaded, tokenizer)
        serving.phase = PHASE_READY
        total_seconds = time.monotonic() - self._started_seconds
        log_event(
            "ready",
            total_seconds=round(total_seconds, 3),
            phases={phase: round(seconds, 3) for phase, seconds in serving.start_phases.items()},
            backend=loaded.backend,
            dtype=loaded.dtype,
            kv_blocks=loaded.kv_blocks,
            block_tokens=loaded.block_tokens,
            max_model_len=serving.model.max_model_len,
        )
        self._spawn(self._watch())

    def _ready_model(self, loaded: LoadedDevice, tokenizer: ModelTokenizer) -> ReadyModel:
        capacity_tokens = loaded.kv_blocks * loaded.block_tokens
        max_model_len = min(loaded.max_model_len, capacity_tokens)
        itl_target = self._config.itl_target_milliseconds
        scheduler = Scheduler(
            SchedulerLimits(
                max_num_seqs=self._config.max_num_seqs,
                max_num_batched_tokens=self._config.max_num_batched_tokens,
                max_model_len=max_model_len,
                kv_blocks=loaded.kv_blocks,
                block_tokens=loaded.block_tokens,
                prefix_caching=self._config.prefix_caching,
                itl_target_seconds=None if itl_target is None else itl_target / 1000,
            )
        )
        bridge = Bridge(
            device=loaded.device,
            scheduler=scheduler,
            counts=self._serving.counts,
            queue=QueueLimits(
                sequences=max(MINIMUM_QUEUE, QUEUE_PER_SLOT * self._config.max_num_seqs),
                tokens=self._config.max_queued_tokens,
            ),
            on_failure=self._fail,
            profiled=loaded.profiled_steps,
        )
        return ReadyModel(
            bridge=bridge,
            tokenizer=tokenizer,
            max_model_len=max_model_len,
            vocab_size=loaded.vocab_size,
            block_tokens=loaded.block_tokens,
            dtype=loaded.dtype,
            backend=loaded.backend,
            first_full_step_seconds=loaded.full_step_seconds,
        )

    async def _watch(self) -> None:
        """Ends the process when a step hangs: the step cannot be stopped, only its process."""
        model = self._serving.model
        while model is not None:
            await asyncio.sleep(WATCHDOG_PERIOD_SECONDS)
            age = model.bridge.step_age_seconds()
            if age <= max(HUNG_STEP_SECONDS, HUNG_FULL_STEPS * self._serving.full_step_seconds()):
                continue
            message = f"a step has been running for {age:.0f} s; the process ends"
            self._cut(GenerationCutError(message, status=500, code="engine_hung"))
            await self._serving.drain.wait_idle(timeout_seconds=FLUSH_SECONDS)
            log_event("hung", seconds=age)
            exit_process(tell(message, ExitCode.HUNG_STEP))

    def _on_terminate(self) -> None:
        """SIGTERM: drain, or leave at once if nothing is served yet. A second one changes nothing."""
        if self._serving.model is None:
            log_event("terminated", phase=self._serving.phase)
            exit_process(ExitCode.OK)
        elif not self._serving.drain.is_draining:
            self._serving.drain.is_draining = True
            log_event("draining", in_flight=self._serving.drain.in_flight)
            self._serving.model.bridge.kv_events.close()
            self._spawn(self._drain())

    def _on_interrupt(self) -> None:
        """Control-C in a terminal: nobody routes to us, so tell the clients and end; at once the second time."""
        if self._serving.model is None or self._serving.drain.is_refusing:
            exit_process(ExitCode.OK)
        self._serving.drain.is_draining = self._serving.drain.is_refusing = True
        self._cut(GenerationCutError("The server was interrupted.", status=503, code="engine_interrupted"))
        self._spawn(self._finish_when_flushed(ExitCode.OK))

    async def _drain(self) -> None:
        cut_error = GenerationCutError(
            f"The engine is shutting down and its drain timeout of {self._config.drain_timeout_seconds} s is over.",
            status=503,
            code="engine_draining",
        )
        is_clean = await self._serving.drain.run(cut=lambda: self._cut(cut_error))
        log_event("drained", clean=is_clean, cut_requests=self._serving.counts.cut)
        self._finish(ExitCode.OK)

    def _cut(self, error: GenerationCutError) -> None:
        if self._serving.model is not None:
            self._serving.model.bridge.cut_all(error)

    def _fail(self, error: BaseException) -> None:
        """A failure ends the process, after the clients in flight were told."""
        self._tasks.append(asyncio.get_running_loop().create_task(self._fail_after_flush(error)))

    async def _fail_after_flush(self, error: BaseException) -> None:
        await self._finish_when_flushed(explain(error))

    async def _finish_when_flushed(self, code: ExitCode) -> None:
        await self._serving.drain.wait_idle(timeout_seconds=FLUSH_SECONDS)
        self._finish(code)

    def _finish(self, code: ExitCode) -> None:
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(code)
