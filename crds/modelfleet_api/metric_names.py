"""The engine's metric names: exported by the engine, read by autoscaler, gateway and dashboards.

The `vllm:` names are vLLM's own, with its labels, so that existing dashboards and routers work unchanged. What
vLLM has no name for is `modelfleet_engine_…`. A name ships once.
"""

from __future__ import annotations

LABEL_MODEL_NAME = "model_name"
LABEL_ENGINE = "engine"
LABEL_FINISHED_REASON = "finished_reason"
LABEL_REASON = "reason"
# Of STEP_TIME_SECONDS: which coefficient of the learned step time.
LABEL_TERM = "term"
LABEL_PHASE = "phase"
LABEL_BACKEND = "backend"
LABEL_DTYPE = "dtype"

NUM_REQUESTS_RUNNING = "vllm:num_requests_running"
NUM_REQUESTS_WAITING = "vllm:num_requests_waiting"
KV_CACHE_USAGE = "vllm:kv_cache_usage_perc"
CACHE_CONFIG_INFO = "vllm:cache_config_info"
NUM_PREEMPTIONS = "vllm:num_preemptions"
PROMPT_TOKENS = "vllm:prompt_tokens"
PREFIX_CACHE_QUERIES = "vllm:prefix_cache_queries"
PREFIX_CACHE_HITS = "vllm:prefix_cache_hits"
GENERATION_TOKENS = "vllm:generation_tokens"
REQUEST_SUCCESS = "vllm:request_success"
ADMISSION_REJECTIONS = "vllm:admission_rejections"
TIME_TO_FIRST_TOKEN = "vllm:time_to_first_token_seconds"
INTER_TOKEN_LATENCY = "vllm:inter_token_latency_seconds"
E2E_REQUEST_LATENCY = "vllm:e2e_request_latency_seconds"
REQUEST_QUEUE_TIME = "vllm:request_queue_time_seconds"
REQUEST_PROMPT_TOKENS = "vllm:request_prompt_tokens"
REQUEST_GENERATION_TOKENS = "vllm:request_generation_tokens"

STEPS = "modelfleet_engine_steps"
COMPUTED_TOKENS = "modelfleet_engine_computed_tokens"
RECOMPUTED_TOKENS = "modelfleet_engine_recomputed_tokens"
BUSY_SECONDS = "modelfleet_engine_busy_seconds"
CUT_REQUESTS = "modelfleet_engine_cut_requests"
DRAINING = "modelfleet_engine_draining"
STEP_TIME_SECONDS = "modelfleet_engine_step_time_seconds"
QUEUED_TOKENS = "modelfleet_engine_queued_tokens"
RUNNING_TOKENS = "modelfleet_engine_running_tokens"
KV_WASTE = "modelfleet_engine_kv_waste_perc"
KV_BLOCKS_CACHED = "modelfleet_engine_kv_blocks_cached"
EXPIRED_REQUESTS = "modelfleet_engine_expired_requests"
KERNEL_BACKEND_INFO = "modelfleet_engine_kernel_backend_info"
START_PHASE_SECONDS = "modelfleet_engine_start_phase_seconds"
