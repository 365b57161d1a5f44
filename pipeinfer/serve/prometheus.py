"""`/metrics`: how things stand, in Prometheus's text format."""

from collections.abc import Iterator

from pipeinfer.serve.counters import Snapshot
from pipeinfer.serve.speculative_metrics import counters

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(snapshot: Snapshot, model: str) -> str:
    """All metrics. Those of speculation have vLLM's names, ours begin with `pipeinfer_`; times are seconds."""
    quoted = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines: list[str] = []
    kept = ""
    for name, labels, value, help_text in _samples(snapshot):
        if name != kept:
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
            kept = name
        pairs = "".join(f',{label}="{text}"' for label, text in labels.items())
        lines.append(f'{name}{{model_name="{quoted}"{pairs}}} {value}')
    return "\n".join(lines) + "\n"


def _samples(snapshot: Snapshot) -> Iterator[tuple[str, dict[str, str], float, str]]:
    """Name, labels, value and what it is; samples of one name stand together."""
    speculation = counters(snapshot.drafts, snapshot.draft_tokens, snapshot.accepted_tokens)
    for name, value in speculation.items():
        yield name, {}, value, "Speculative decoding, counted since the start."
    for state, count in (("running", snapshot.running), ("waiting", snapshot.waiting)):
        yield "pipeinfer_requests", {"state": state}, count, "Requests in the pipe and before it."
    for reason, count in sorted(snapshot.done.items()):
        yield "pipeinfer_requests_done_total", {"reason": reason}, count, "Requests by what ended them."
    yield "pipeinfer_tokens_total", {}, snapshot.tokens, "Tokens generated."
    yield "pipeinfer_prompt_tokens_total", {}, snapshot.prompt_tokens, "Tokens of prompts."
    yield "pipeinfer_cached_tokens_total", {}, snapshot.cached_tokens, "Tokens of prompts that were held already."
    yield "pipeinfer_draft_cached_tokens_total", {}, snapshot.draft_cached_tokens, "Tokens that the draft held already."
    yield "pipeinfer_runs_in_flight", {}, snapshot.runs_in_flight, "Runs that have not come back."
    yield "pipeinfer_runs_total", {}, snapshot.runs, "Runs that came back."
    yield "pipeinfer_cancelled_runs_total", {}, snapshot.cancelled_runs, "Of these, runs that a stage skipped or left."
    for stage, busy in enumerate(snapshot.stage_busy_s):
        yield "pipeinfer_stage_busy_seconds_total", {"stage": str(stage)}, busy, "Time in which a stage computed."
    for stage, busy in enumerate(snapshot.stage_busy_s):
        share = busy / snapshot.uptime_s if snapshot.uptime_s > 0 else 0.0
        yield "pipeinfer_stage_occupancy", {"stage": str(stage)}, share, "Share of the time since the start."
    for state, count in (("used", snapshot.cells_used), ("free", snapshot.cells - snapshot.cells_used)):
        yield "pipeinfer_cells", {"state": state}, count, "KV cells of every stage."
    yield "pipeinfer_stages", {}, snapshot.stages, "Ranks that compute the target."
    yield "pipeinfer_has_draft", {}, int(snapshot.has_draft), "Whether a draft model is there."
    yield "pipeinfer_ranks_lost_total", {}, snapshot.losses, "How often a rank was lost."
    yield "pipeinfer_uptime_seconds", {}, snapshot.uptime_s, "Time since the start."
