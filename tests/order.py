"""Which test files a worker has to itself, and which begin, where several workers share the tests."""

WHOLE_MACHINE = (
    "benchmarks/",
    "cluster/test_auto.py",
    "cluster/test_cpu_share.py",
    "cluster/test_mpi_world.py",
    "cluster/test_slurm.py",
    "modelling/test_calibrate.py",
    "runtime/test_probe.py",
    "runtime/test_shared_cores.py",
    "runtime/test_stage_timing.py",
    "runtime/transports/test_mpi.py",
    "study/test_slurm_jobs.py",
)
"""Files that measure, shape links, make clusters or start a process per core: they would disturb one another."""

TORCH = (
    "backends/test_conventions.py",
    "backends/test_tied_output.py",
    "backends/test_torch.py",
    "backends/test_torch_gemma.py",
    "cluster/test_ranks_per_core.py",
    "cluster/test_weights.py",
    "engine/test_chat.py",
    "engine/test_grow.py",
    "engine/test_tokenizers.py",
    "test_bad_input.py",
    "test_check.py",
    "test_exact_texts.py",
    "test_lossless_backends.py",
    "test_not_finite.py",
)
"""Files that load torch or transformers: it takes a worker seconds, and need not take each of them."""

WAITS = (
    "cluster/test_faults.py",
    "cluster/test_fewer_ranks.py",
    "cluster/test_patience.py",
    "cluster/test_processor_time.py",
    "cluster/test_rank_processes.py",
    "cluster/test_workers.py",
    "runtime/transports/test_shaped.py",
    "runtime/transports/test_tcp.py",
    "runtime/transports/test_tcp_liveness.py",
    "runtime/transports/test_tls.py",
    "serve/test_command.py",
    "serve/test_leaving.py",
    "serve/test_random_kills.py",
    "serve/test_recovery.py",
    "serve/test_worker_recovery.py",
    "test_cancellation.py",
)
"""Files that wait for peers that are lost or late, and hardly compute: while one worker waits, the others compute."""

LONG = (
    "waits",
    "torch",
    "machine",
    "core/test_schedules.py",
    "test_docs.py",
    "backends/test_llamacpp_gemma.py",
    "test_example_plugin.py",
    "report/test_figures.py",
    "modelling/test_theory.py",
    "study/test_reproduce.py",
    "core/strategies/test_adaptive.py",
    "serve/test_llamacpp_served.py",
    "study/test_executors.py",
    "test_lossless.py",
    "modelling/test_calibration_fit.py",
    "backends/test_llamacpp_splits.py",
    "test_output.py",
    "study/test_growth.py",
    "report/test_style.py",
    "cluster/test_draft_ranks.py",
    "results/test_frame.py",
    "modelling/test_adaptive_among_others.py",
    "serve/test_page.py",
    "backends/test_llamacpp_architectures.py",
    "test_cli.py",
    "modelling/test_shared_pipe.py",
    "study/test_emulated_profile.py",
    "study/test_reproduce_folder.py",
    "backends/test_llamacpp_pipelines.py",
    "backends/test_llamacpp_rows.py",
    "test_schedulers_live.py",
    "report/test_report.py",
    "study/test_artifact.py",
    "engine/test_sampling.py",
    "cluster/test_working_folder.py",
    "study/test_reproduce_calibrated.py",
    "report/test_report_in_browser.py",
    "serve/test_service.py",
    "backends/test_llamacpp.py",
    "serve/test_fuzz.py",
    "serve/test_draft_for_several.py",
    "results/test_compare.py",
    "modelling/test_simulate.py",
    "core/strategies/test_simulated_only.py",
    "serve/test_completions.py",
    "report/test_league.py",
    "modelling/test_trace_recording.py",
    "results/test_metrics.py",
    "core/test_drafter.py",
)
"""Those that take longest, the longest first."""


def scope_of(nodeid: str) -> str:
    """What one worker has to itself."""
    place = nodeid.partition("::")[0].removeprefix("tests/")
    groups = {"machine": WHOLE_MACHINE, "torch": TORCH, "waits": WAITS}
    return next((name for name, files in groups.items() if place.startswith(files)), place)
