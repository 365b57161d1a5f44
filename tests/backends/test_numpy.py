from pipeinfer.testing import BackendConformance
from pipeinfer_numpy import NumpyBackend


class TestConformance(BackendConformance):
    def backend(self):
        return NumpyBackend()
