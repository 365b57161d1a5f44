"""The one import that a backend's author needs to check it."""

from pathlib import Path

from pipeinfer_example.recency import RecencyBackend

from pipeinfer.testing import BackendConformance


class TestRecency(BackendConformance):
    rtol = 1e-5

    def backend(self) -> RecencyBackend:
        return RecencyBackend()

    def model(self, tmp_path: Path) -> str:
        return "recency"
