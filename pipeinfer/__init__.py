"""PipeInfer: a benchmarking and reproducibility suite for pipelined speculative LLM inference (SC'24)."""

__version__ = "0.1.0"
