"""transformers' `generate` on the jobs of random prompts: `python -m bench.transformers_generate MODEL`.

No server: no HTTP, no streaming, no continuous batching. A job of concurrency c becomes batches of c prompts of equal
length, each computed to its end before the next. Jobs come as JSON lines on stdin; an answer line each on stdout,
after a first line that says the model is loaded.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.generation import LogitsProcessor, LogitsProcessorList

from bench.load_job import LoadJob, RequestRecord, records_to_json


class _Clock(LogitsProcessor):  # type: ignore[misc]
    """Notes when each step's logits were there; changes nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return scores


def run_job(model: torch.nn.Module, job: LoadJob) -> list[RequestRecord]:
    """Computes the job's batches one after the other."""
    started = time.perf_counter()
    records: list[RequestRecord] = []
    for first in range(0, len(job.prompts), job.concurrency):
        batch = torch.tensor(job.prompts[first : first + job.concurrency])  # [B, T]
        clock = _Clock()
        sent = time.perf_counter() - started
        output = model.generate(  # type: ignore[operator]
            batch,
            attention_mask=torch.ones_like(batch),
            do_sample=False,
            temperature=None,
            top_p=None,
            min_new_tokens=job.output_tokens,
            max_new_tokens=job.output_tokens,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([clock]),
        )  # [B, T + output_tokens]
        arrivals = tuple(moment - started for moment in clock.times)
        record = RequestRecord(
            sent_seconds=sent,
            finished_seconds=time.perf_counter() - started,
            arrivals_seconds=arrivals,
            prompt_tokens=batch.shape[1],
            completion_tokens=output.shape[1] - batch.shape[1],
        )
        records.extend([record] * len(batch))
    return records


def main() -> int:
    """Loads the model, says so, answers jobs until the input ends."""
    directory = Path(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, local_files_only=True).eval()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with torch.inference_mode():
        for line in sys.stdin:
            sys.stdout.write(records_to_json(run_job(model, LoadJob.from_json(line))) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
