"""`python -m bench.soak`: an engine at four times its KV cache, with clients that leave, err and lose patience.

Passes when every accepted request was answered or told why not, nothing leaked (blocks, requests, memory), the probes
answered all along, and SIGTERM ended it cleanly. Prints a table; exit code 1 names what was violated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
from modelfleet_api.protocol import Load

from bench.soak.traffic import MODEL, VIOLATIONS, Ended, Outcome, plan_request, send
from bench.soak.watch import Watch, growth, is_stable
from e2e.demo_model import demo_model_path

MAX_MODEL_LEN = 1024
RUNNING = 32
# Some wait besides those that run.
CLIENTS = 64
BLOCK_TOKENS = 16
# A running request holds about this many tokens at its longest in this load.
MEAN_TOKENS = 330
OVERSUBSCRIPTION = 4
# A bound on the engine's own end after SIGTERM, once idle.
EXIT_SECONDS = 30.0


async def soak(*, model: Path, seconds: float, seed: int) -> list[str]:
    """Runs the load and answers what was violated; prints the table."""
    config = json.loads((model / "config.json").read_text())
    ended: Counter[Outcome] = Counter()
    details: list[str] = []
    async with (
        _engine(model, config) as (process, base_url),
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
        ) as session,
    ):
        watch = Watch(pid=process.pid)
        watching = asyncio.create_task(watch.run(session, base_url))
        until = time.monotonic() + seconds

        async def client(number: int) -> None:
            dice = random.Random(f"{seed}-{number}")
            while time.monotonic() < until:
                planned = plan_request(dice, longest_prompt_tokens=MAX_MODEL_LEN - 200, vocab_size=config["vocab_size"])
                end = await send(session, base_url, planned)
                _count(end, ended, details)

        await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        violations = await _leaks(session, base_url)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        preemptions = (await _load(session, base_url)).counters.preemptions
        process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(process.wait(), EXIT_SECONDS)
    violations += [f"{outcome.value}: {ended[outcome]}" for outcome in sorted(VIOLATIONS) if ended[outcome]]
    violations += details[:10]
    violations += _judge(watch, exit_code=code, preemptions=preemptions)
    _print_table(ended, watch, preemptions=preemptions, seconds=seconds)
    return violations


def _count(end: Ended, ended: Counter[Outcome], details: list[str]) -> None:
    ended[end.outcome] += 1
    if end.outcome in VIOLATIONS:
        details.append(f"{end.outcome.value}: {end.detail}")


def _judge(watch: Watch, *, exit_code: int, preemptions: int) -> list[str]:
    violations: list[str] = []
    if watch.failed_probes:
        violations.append(f"{len(watch.failed_probes)} health probes failed, first: {watch.failed_probes[0]}")
    if not is_stable(watch.resident_bytes):
        early, late = growth(watch.resident_bytes)
        violations.append(f"memory grew from {early >> 20} to {late >> 20} MiB")
    if exit_code != 0:
        violations.append(f"SIGTERM ended it with exit code {exit_code}")
    if not preemptions:
        violations.append("nothing was preempted: the KV cache was not oversubscribed, the run says nothing")
    return violations


async def _leaks(session: aiohttp.ClientSession, base_url: str) -> list[str]:
    """What is still held once all clients are gone; an aborted request may take a few steps to go."""
    held: dict[str, int] = {}
    for _ in range(100):
        load = await _load(session, base_url)
        held = {"running": load.running, "waiting": load.waiting, "KV blocks": load.kv_blocks_used}
        if not any(held.values()):
            return []
        await asyncio.sleep(0.1)
    return [f"idle for 10 s, yet held: {held}"]


async def _load(session: aiohttp.ClientSession, base_url: str) -> Load:
    async with session.get(base_url + "/load") as response:
        return Load.model_validate_json(await response.read())


@asynccontextmanager
async def _engine(model: Path, config: dict[str, int]) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A serving engine with a KV cache a quarter of what its load wants; killed if it is still there at the end."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token_bytes = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
    tokens = max(MAX_MODEL_LEN, RUNNING * MEAN_TOKENS // OVERSUBSCRIPTION)
    options = {
        "--port": 0,
        "--served-model-name": MODEL,
        "--max-model-len": MAX_MODEL_LEN,
        "--max-num-seqs": RUNNING,
        "--max-num-batched-tokens": 256,
        "--block-tokens": BLOCK_TOKENS,
        "--kv-cache-bytes": -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS * token_bytes,
        "--accept-after-sigterm-seconds": 0,
    }
    flags = [str(part) for pair in options.items() for part in pair]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "modelfleet_engine.main", "serve", str(model), *flags, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = 0
        async for line in process.stdout:
            event = json.loads(line)
            port = event.get("port", port)
            if event["event"] == "ready":
                break
        draining = asyncio.create_task(_discard(process.stdout))
        yield process, f"http://127.0.0.1:{port}"
        await draining
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _discard(lines: asyncio.StreamReader) -> None:
    while await lines.read(1 << 16):
        pass


def _print_table(ended: Counter[Outcome], watch: Watch, *, preemptions: int, seconds: float) -> None:
    print(f"{sum(ended.values())} requests in {seconds:.0f} s")
    for outcome in Outcome:
        print(f"  {outcome.value:<28}{ended[outcome]:>8}")
    early, late = growth(watch.resident_bytes)
    print(f"  {'preemptions':<28}{preemptions:>8}")
    print(f"  {'resident MiB, early / late':<28}{early >> 20:>8} / {late >> 20}")
    print(f"  {'/health slowest, seconds':<28}{max(watch.health_seconds):>8.3f}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the load runs (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="a model directory (default: the demo model)")
    parser.add_argument("--seed", type=int, default=1, help="the load's dice (default: %(default)s)")
    arguments = parser.parse_args()
    model = arguments.model or demo_model_path()
    violations = asyncio.run(soak(model=model, seconds=arguments.seconds, seed=arguments.seed))
    for violation in violations:
        print(f"VIOLATED: {violation}")
    print("failed" if violations else "passed")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
