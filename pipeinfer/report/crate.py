"""What a results folder is, for archives: an RO-Crate of its files (ro-crate-metadata.json, version 1.1)."""

import time
from pathlib import Path
from typing import Any

import msgspec

import pipeinfer

FILE = "ro-crate-metadata.json"
PAPER = "PipeInfer: Accelerating LLM Inference using Asynchronous Pipelined Speculation (SC'24)"
FILES = {
    "report.html": ("The report", "text/html"),
    "report.md": ("The report", "text/markdown"),
    "claims.json": ("The paper's claims with a verdict each", "application/json"),
    "trials.jsonl": ("Every trial as it was recorded", "application/jsonl"),
    "trials.parquet": ("A row per trial", "application/vnd.apache.parquet"),
    "gaps.parquet": ("A row per token", "application/vnd.apache.parquet"),
    "ranks.parquet": ("A row per rank and trial", "application/vnd.apache.parquet"),
    "spans.parquet": ("A row per computation", "application/vnd.apache.parquet"),
}


def write_crate(folder: Path, command: str) -> None:
    """Describe the files of a folder, which this `command` made. Raises OSError."""
    figures = sorted([*folder.glob("figures/*.svg"), *folder.glob("paper_figures/*.svg")])
    described = {name: what for name, what in FILES.items() if (folder / name).exists()}
    described |= {path.relative_to(folder).as_posix(): (path.stem, "image/svg+xml") for path in figures}
    software = {"@id": "#pipeinfer", "@type": "SoftwareApplication", "name": "pipeinfer",
                "softwareVersion": pipeinfer.__version__}  # fmt: skip
    made = {"@id": "#run", "@type": "CreateAction", "name": command, "instrument": {"@id": "#pipeinfer"},
            "result": [{"@id": name} for name in described]}  # fmt: skip
    root = {"@id": "./", "@type": "Dataset", "name": "PipeInfer, reproduced", "description": f"Results about {PAPER}",
            "datePublished": time.strftime("%Y-%m-%d", time.gmtime()), "license": {"@id": "#license"},
            "hasPart": [{"@id": name} for name in described], "mentions": {"@id": "#run"}}  # fmt: skip
    graph: list[dict[str, Any]] = [
        {"@id": FILE, "@type": "CreativeWork", "about": {"@id": "./"},
         "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"}},
        root, software, made, {"@id": "#license", "@type": "CreativeWork", "name": "MIT"},
        *({"@id": name, "@type": "File", "name": what, "encodingFormat": kind}
          for name, (what, kind) in described.items()),
    ]  # fmt: skip
    crate = {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": graph}
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(crate)) + b"\n")
