"""Ranks under Slurm, on a cluster of one node that is made here."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from slurm_cluster import Run, one_node_of_slurm

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.mpi_world import LAUNCHERS, SRUN_MPI
from pipeinfer.core.strategies.iterative import Iterative

pytestmark = pytest.mark.timeout(120)

TOKENS = 24
PROMPT = "def read_lines(path):\n"
DOCS = Path(__file__).parents[2] / "docs" / "clusters.md"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with one_node_of_slurm(tmp_path_factory.mktemp("slurm")) as run:
        yield run


@pytest.fixture(scope="module")
def mpich() -> None:
    """mpi4py loads MPICH. The PMIx of Slurm and of Open MPI have to fit each other, of which nothing can be known."""
    mpi = pytest.importorskip("pipeinfer.runtime.transports.mpi", reason="mpi4py is not installed")
    if mpi.library().get_vendor()[0] != "MPICH":
        pytest.skip("mpi4py does not load MPICH")


@pytest.fixture(scope="module")
def expected() -> list[int]:
    with Cluster(transport="inproc", stages=1, draft=None) as cluster:
        prompt = cluster.tokenizer.encode(PROMPT)
        return list(cluster.generate(prompt, Iterative(), max_tokens=TOKENS).token_ids)


GENERATE = ["pipeinfer", "generate", PROMPT, "--tokens", str(TOKENS), "--json"]


@pytest.mark.usefixtures("mpich")
def test_srun_starts_a_world(slurm: Run, expected: list[int]) -> None:
    done = slurm("srun", f"--mpi={SRUN_MPI['MPICH']}", "-n", "5", *GENERATE)
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["token_ids"] == expected
    assert len(re.findall(r"^rank \d", done.stderr, re.MULTILINE)) == 4


@pytest.mark.usefixtures("mpich")
def test_srun_without_the_library_s_pmi_is_one_line(slurm: Run) -> None:
    done = slurm("srun", "--mpi=none", "-n", "5", *GENERATE)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = re.findall("^error: .*", done.stderr, re.MULTILINE)
    assert "use `srun --mpi=pmi2` or MPICH's own mpirun" in line


@pytest.mark.usefixtures("mpich")
@pytest.mark.parametrize("way", ["none", "pmi2"])
def test_a_world_of_its_own_in_one_task(slurm: Run, expected: list[int], way: str) -> None:
    done = slurm("srun", f"--mpi={way}", "-n", "1", *GENERATE, "--launcher", "mpi", "--nodes", "2")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["token_ids"] == expected


def test_the_documented_batch_script_of_tcp_workers(slurm: Run, tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (script,) = [block for block in blocks if "pipeinfer worker" in block]
    (tmp_path / "job.sh").write_text(script)
    done = slurm("sbatch", "--wait", "--chdir", str(tmp_path), "--output", str(tmp_path / "said"), f"{tmp_path}/job.sh")
    assert done.returncode == 0, done.stderr + (tmp_path / "said").read_text()
    trial = msgspec.json.decode((tmp_path / "trial.json").read_bytes())
    assert len(trial["token_ids"]) == 32
    assert list(tmp_path.glob("*.key")) == []


def test_what_srun_tells_a_task_is_what_a_rank_looks_for(slurm: Run) -> None:
    names = dict(LAUNCHERS)
    done = slurm("srun", "--mpi=none", "-n", "3", "sh", "-c", f"echo $SLURM_PROCID ${names['SLURM_PROCID']}")
    assert sorted(done.stdout.splitlines()) == ["0 3", "1 3", "2 3"]
