"""Names of all attributes, spans and log events, in one place because OpenTelemetry's GenAI conventions still change.

Source of `gen_ai.*`: opentelemetry.io/docs/specs/semconv/gen-ai (1.38). All other names are Interlock's own.
"""

from __future__ import annotations

# Spans
RUN = "run"
STEP = "step"
MODEL_CALL = "chat"
TOOL_CALL = "execute_tool"
COMPENSATION = "compensate"

# Attributes of every span
WORKFLOW_NAME = "workflow.name"
WORKFLOW_VERSION = "workflow.version"
ORG_ID = "org.id"
USER_ID = "user.id"
RUN_ID = "run.id"
STEP_ID = "step.id"
STEP_KIND = "step.kind"
STEP_ATTEMPT = "step.attempt"
SUCCESS = "success"
ERROR_TYPE = "error.type"
LATENCY_MS = "latency.ms"

# Model calls
GEN_AI_OPERATION = "gen_ai.operation.name"
GEN_AI_PROVIDER = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_TOOL_NAME = "gen_ai.tool.name"
MODEL_NAME = "model.name"
TOKENS_INPUT = "tokens.input"
TOKENS_OUTPUT = "tokens.output"
COST_USD = "cost.usd"
COST_UNPRICED = "cost.unpriced_calls"
MODEL_ATTEMPTS = "model.attempts"
MODEL_BATCH = "model.batch"

# Tool calls
TOOL_EFFECT = "tool.effect"
TOOL_START_MS = "tool.sandbox.start.ms"
TOOL_SANDBOX = "tool.sandbox.name"
IDEMPOTENCY_KEY = "idempotency.key"

# Decisions
POLICY_DECISION = "policy.decision"
POLICY_VERSION = "policy.version"
POLICY_REASONS = "policy.reasons"

# Values, by reference
OUTPUT_DIGEST = "output.digest"
GUARD_FINDINGS = "guard.findings"
REUSED = "output.reused"
STALE_STEPS = "input.stale.steps"

# Log events
LOG_WORKER_STARTED = "worker.started"
LOG_WORKER_STOPPED = "worker.stopped"
LOG_RUN_STARTED = "run.started"
LOG_RUN_RESUMED = "run.resumed"
LOG_RUN_FINISHED = "run.finished"
LOG_RUN_RELEASED = "run.released"
LOG_RUN_ABANDONED = "run.abandoned"
LOG_STEP_FINISHED = "step.finished"
LOG_STEP_FAILED = "step.failed"
LOG_REQUEST_FAILED = "request.failed"
LOG_REQUEST_MALFORMED = "request.malformed"
LOG_EGRESS = "egress"
LOG_BREAKER_MOVED = "breaker.moved"
LOG_TOOL_ALTERED = "tool.altered"
LOG_TOOL_HEALTH = "tool.health"
LOG_HEALTH_UNKNOWN = "health.unknown"
LOG_POLICY = "policy"
LOG_DATABASE_DOWN = "database.down"
LOG_BATCH_SUBMITTED = "batch.submitted"
LOG_BATCH_ENDED = "batch.ended"
LOG_BATCH_DELAYED = "batch.delayed"
LOG_TEMPORAL_DOWN = "temporal.down"
LOG_EVENT = "event"
LOG_UNDELIVERED = "event.undelivered"
LOG_LIBRARY = "library"
LOG_INTERNAL = "internal.error"
