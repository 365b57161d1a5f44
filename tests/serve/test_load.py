"""A load generator that others use, as the documentation shows it. Skips where GuideLLM is not on the path."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from small_pair import Pair
from web_client import WebClient

ROOT = Path(__file__).parents[2]
PROMPTS = ["def read_lines(path):", "import os\n", "class Queue:\n", "for index in range("]


@pytest.mark.skipif(shutil.which("guidellm") is None, reason="guidellm is not on the path: pip install guidellm")
def test_guidellm_gets_all_its_tokens(web: WebClient, small_pair: Pair, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "serve.md").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"\$ load/bin/(guidellm run .*)", page)
    line = line.replace("http://127.0.0.1:8000", web.url).replace("workloads/builtin/target", small_pair.target)
    line = line.replace("count=64", "count=8")
    prompts = [{"prompt": prompt, "output_tokens_count": 8} for prompt in PROMPTS * 2]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    before: Any = web.service.snapshot()
    done = subprocess.run(
        shlex.split(line), cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (benchmark,) = json.loads((tmp_path / "load.json").read_text())["benchmarks"]
    assert len(benchmark["requests"]["successful"]) == 8
    assert not benchmark["requests"]["errored"]
    after: Any = web.service.snapshot()
    assert after.tokens - before.tokens == 8 * 8
