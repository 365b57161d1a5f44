"""Train the built-in model pair: a small Llama-style target and a smaller draft distilled from it.

The text is the standard library of the running Python (``Lib/**/*.py`` without its tests), so the pair can be
rebuilt anywhere without a download::

    python workloads/builtin/train.py target --minutes 55
    python workloads/builtin/train.py draft --minutes 17
    python workloads/builtin/train.py card

``target`` also trains the tokenizer. The learning rate follows the fraction of the time budget that has passed, so a
run ends on time on any machine; the number of steps done is printed and stored with the run. One process a core is
faster than one process on all cores when the machine has other work: ``torchrun --nproc-per-node 2`` in place of
``python`` shares every step between two. Needs torch, numpy, tokenizers and safetensors.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import platform
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
SEED = 20241117
VOCAB = 2048
END_OF_TEXT = "<|endoftext|>"
CONTEXT = 1024
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")  # written by the build of one machine


# ---------------------------------------------------------------------------------------------------------------------
# Text and tokens


def library_files() -> list[Path]:
    """The standard library's own modules, in a fixed order: no tests, no code-page tables, no build records."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not SKIPPED_FOLDERS & set(parts) and not any(part.startswith(SKIPPED_PREFIXES) for part in parts):
            found.append(path)
    return found


def is_held_out(path: Path) -> bool:
    """One file in fifty, chosen by a hash of its path inside the library."""
    name = path.relative_to(sysconfig.get_paths()["stdlib"]).as_posix()
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 50 == 0


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE of ``VOCAB`` entries whose entry 0 marks the borders between files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_files(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """One stream of tokens with a border before every file and after the last."""
    border = np.zeros(1, dtype=np.uint16)
    pieces = [border]
    for encoding in tokenizer.encode_batch(texts):
        pieces += [np.array(encoding.ids, dtype=np.uint16), border]
    return np.concatenate(pieces)


def prepare(run: Path) -> tuple[Tokenizer, np.ndarray, np.ndarray]:
    """The tokenizer, the training stream and the held-out stream, built once and kept in the run folder."""
    if not (run / "data.json").exists():
        build_data(run)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    return tokenizer, np.load(run / "train.npy"), np.load(run / "held_out.npy")


def build_data(run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    files = library_files()
    training = [read_text(path) for path in files if not is_held_out(path)]
    held_out = [read_text(path) for path in files if is_held_out(path)]
    tokenizer = train_tokenizer(training)
    tokenizer.save(str(run / "tokenizer.json"))
    streams = {"train": encode_files(tokenizer, training), "held_out": encode_files(tokenizer, held_out)}
    for name, stream in streams.items():
        np.save(run / f"{name}.npy", stream)
    facts = {
        "python": platform.python_version(),
        "train_files": len(training),
        "train_bytes": sum(len(text.encode()) for text in training),
        "train_tokens": len(streams["train"]),
        "held_out_files": len(held_out),
        "held_out_tokens": len(streams["held_out"]),
    }
    write_json(run / "data.json", facts)
    print(facts, flush=True)


def windows(stream: np.ndarray, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of ``rows`` x ``CONTEXT`` inputs and their successors, each epoch in a new order and phase."""
    draw = np.random.default_rng(seed)
    data = torch.from_numpy(stream.astype(np.int64))
    while True:
        starts = np.arange(draw.integers(CONTEXT), len(data) - CONTEXT - 1, CONTEXT)
        draw.shuffle(starts)
        for first in range(0, len(starts) - rows + 1, rows):
            block = torch.stack([data[s : s + CONTEXT + 1] for s in starts[first : first + rows]])
            yield block[:, :-1], block[:, 1:]


# ---------------------------------------------------------------------------------------------------------------------
# Model


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of one Llama-style model; the output layer is the embedding."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    head_dim: int = 32
    eps: float = 1e-5
    theta: float = 10000.0

    def config(self) -> dict[str, object]:
        """The ``config.json`` of a Hugging Face ``LlamaForCausalLM``."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCAB,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": self.eps,
            "rope_theta": self.theta,
            "rope_scaling": None,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "use_cache": True,
            "torch_dtype": "float16",
        }


SHAPES = {
    "target": Shape(hidden=256, layers=8, heads=8, kv_heads=4, ffn=688),
    "draft": Shape(hidden=160, layers=2, heads=5, kv_heads=5, ffn=384),
}

KeyValue = tuple[Tensor, Tensor]


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in the half-split convention: dimension i turns with dimension i + head_dim / 2."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


class Attention(nn.Module):
    """Causal attention with grouped key and value heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = linear(shape.hidden, shape.heads * shape.head_dim)
        self.k_proj = linear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.v_proj = linear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.o_proj = linear(shape.heads * shape.head_dim, shape.hidden)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor, turn: KeyValue, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        query = rotate(self.split(self.q_proj(x)), *turn)
        key, value = rotate(self.split(self.k_proj(x)), *turn), self.split(self.v_proj(x))
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        repeats = self.shape.heads // self.shape.kv_heads
        wide_key, wide_value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
        mixed = F.scaled_dot_product_attention(query, wide_key, wide_value, is_causal=past is None)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), (key, value)


class Feed(nn.Module):
    """The gated feed-forward layer (SwiGLU)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = linear(shape.hidden, shape.ffn)
        self.up_proj = linear(shape.hidden, shape.ffn)
        self.down_proj = linear(shape.ffn, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.eps)
        self.mlp = Feed(shape)

    def forward(self, x: Tensor, turn: KeyValue, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        mixed, kept = self.self_attn(self.input_layernorm(x), turn, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Decoder(nn.Module):
    """A Llama-style decoder; its parameter names under ``model.`` are those of the Hugging Face layout."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(VOCAB, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.eps)
        angles = torch.outer(torch.arange(CONTEXT), shape.theta ** (-torch.arange(0, 1, 2 / shape.head_dim)))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, past: list[KeyValue] | None = None) -> tuple[Tensor, list[KeyValue]]:
        """Logits for every token given, and the keys and values to pass as ``past`` with later tokens."""
        start = past[0][0].shape[2] if past else 0
        span = slice(start, start + tokens.shape[1])
        x, kept = self.embed_tokens(tokens), []
        turn = (self.cos[span].to(x.dtype), self.sin[span].to(x.dtype))
        for index, layer in enumerate(self.layers):
            x, pair = layer(x, turn, past[index] if past else None)
            kept.append(pair)
        return F.linear(self.norm(x), self.embed_tokens.weight), kept


def new_model(shape: Shape) -> Decoder:
    """A model at its starting point: small normal weights, and silent residual branches."""
    model = Decoder(shape)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)
        elif weight.ndim == 2:
            nn.init.normal_(weight, std=0.02 if "embed" in name else shape.hidden**-0.5)
    return model


def save_model(model: Decoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``config.json``, float16 ``model.safetensors`` and ``tokenizer.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": t.detach().half().contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    write_json(folder / "config.json", model.shape.config())
    tokenizer.save(str(folder / "tokenizer.json"))


def load_model(folder: Path, role: str) -> Decoder:
    """The model of an exported folder, computed in float32."""
    model = Decoder(SHAPES[role])
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): t.float() for name, t in tensors.items()})
    return model.eval()


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Training

Loss = Callable[[Decoder, Tensor, Tensor], Tensor]


def cross_entropy(model: Decoder, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs)[0].float().flatten(0, 1), labels.flatten())


def distillation(teacher: Decoder, share: float) -> Loss:
    """Divergence from the teacher's distribution, with a ``share`` of cross-entropy on the text."""

    def loss(model: Decoder, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            goal = teacher(inputs)[0].float().log_softmax(-1).flatten(0, 1)
        guess = model(inputs)[0].float().log_softmax(-1).flatten(0, 1)
        divergence = F.kl_div(guess, goal, reduction="batchmean", log_target=True)
        return (1 - share) * divergence + share * F.nll_loss(guess, labels.flatten())

    return loss


def optimizers(model: Decoder, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [w for name, w in model.named_parameters() if w.ndim == 2 and "embed" not in name]
    others = [w for name, w in model.named_parameters() if w.ndim == 1 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)]


def rate_factor(fraction: float) -> float:
    """Warm up over the first fiftieth of the budget, then fall in a straight line to zero at its end."""
    return min(fraction / 0.02, 1.0) * max(1.0 - fraction, 0.0)


def length_at(role: str, fraction: float) -> int:
    """The target's sequences grow from a quarter of the context to all of it, since short ones cost less.

    The draft, whose run is short, keeps to half of the context: each new length has to be compiled.
    """
    if role == "draft" or 0.4 <= fraction < 0.8:
        return CONTEXT // 2
    return CONTEXT // 4 if fraction < 0.4 else CONTEXT


@torch.no_grad()
def held_out_loss(model: Decoder, stream: np.ndarray, most: int = 64) -> float:
    """Mean cross-entropy, in nats a token, over windows of the held-out stream."""
    data = torch.from_numpy(stream.astype(np.int64))
    starts = range(0, len(data) - CONTEXT // 2 - 1, CONTEXT // 2)
    picked = list(starts)[:: max(1, math.ceil(len(starts) / most))]
    losses = [
        cross_entropy(model, data[None, s : s + CONTEXT // 2], data[None, s + 1 : s + CONTEXT // 2 + 1]) for s in picked
    ]
    return torch.stack(losses).mean().item()


def join_workers() -> tuple[int, int]:
    """This process's number among those torchrun started, and how many there are."""
    if "RANK" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def average(values: list[Tensor], workers: int) -> None:
    """Replace the values by their mean over all workers."""
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)
    for value, mean in zip(values, flat.div_(workers).split([v.numel() for v in values]), strict=True):
        value.copy_(mean.view_as(value))


@dataclasses.dataclass
class Progress:
    """What a run has done so far."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Run:
    """One timed training run with checkpoints in the run folder."""

    def __init__(self, role: str, minutes: float, rate: float, rows: int, folder: Path) -> None:
        torch.manual_seed(SEED)
        self.role, self.budget, self.rate, self.rows, self.folder = role, minutes * 60, rate, rows, folder
        self.rank, self.workers = join_workers()
        if self.rank == 0:
            prepare(folder)
        if self.workers > 1:
            dist.barrier()
        self.tokenizer, self.stream, self.held_out = prepare(folder)
        self.model = new_model(SHAPES[role])
        self.optimizers = optimizers(self.model, rate)
        self.progress = Progress()

    def resume(self) -> None:
        state = torch.load(self.folder / f"{self.role}.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.progress = Progress(**state["progress"])

    def checkpoint(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": dataclasses.asdict(self.progress),
        }
        torch.save(state, self.folder / f"{self.role}.pt")
        save_model(self.model, self.tokenizer, self.folder / self.role)

    def step(self, loss: Loss, batch: tuple[Tensor, Tensor]) -> float:
        fraction = self.progress.seconds / self.budget
        factor, length = rate_factor(fraction), length_at(self.role, fraction)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(self.model, *(tokens.reshape(-1, length) for tokens in batch))
        value.backward()
        if self.workers > 1:
            average([weight.grad for weight in self.model.parameters()], self.workers)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return value.item()

    def train(self, loss: Loss) -> None:
        """Steps until the budget is spent, with a line and a checkpoint now and then."""
        batches = windows(self.stream, self.rows, SEED + self.progress.steps)
        loss = torch.compile(loss, dynamic=False)
        before, clock, saved, recent = self.progress.seconds, time.monotonic(), time.monotonic(), []
        while self.progress.seconds < self.budget:
            inputs, labels = next(batches)
            recent.append(self.step(loss, (inputs[self.rank :: self.workers], labels[self.rank :: self.workers])))
            self.progress.steps += 1
            self.progress.tokens += self.rows * CONTEXT
            self.progress.seconds = self.agreed(before + time.monotonic() - clock)
            if self.progress.steps % 25 == 0 and self.rank == 0:
                self.report(recent)
                recent = []
            if time.monotonic() - saved > 180 and self.rank == 0:
                print(f"held-out loss {held_out_loss(self.model, self.held_out, 24):.3f}", flush=True)
                self.checkpoint()
                saved = time.monotonic()
        if self.rank == 0:
            self.finish()

    def agreed(self, seconds: float) -> float:
        """The time passed, the same number in every worker."""
        if self.workers == 1:
            return seconds
        clock = torch.tensor([seconds], dtype=torch.float64)
        average([clock], self.workers)
        return clock.item()

    def report(self, recent: list[float]) -> None:
        p = self.progress
        speed = p.tokens / p.seconds
        print(f"{p.seconds:6.0f} s  step {p.steps}  loss {np.mean(recent):.3f}  {speed:.0f} tokens/s", flush=True)

    def finish(self) -> None:
        self.checkpoint()
        facts = dataclasses.asdict(self.progress) | {"rate": self.rate, "batch_tokens": self.rows * CONTEXT}
        facts["held_out_loss"] = held_out_loss(load_model(self.folder / self.role, self.role), self.held_out, 10**9)
        write_json(self.folder / f"{self.role}.json", facts)
        print(facts, flush=True)


def train_target(options: argparse.Namespace) -> None:
    run = Run("target", options.minutes, options.rate or 5e-3, options.rows, options.work)
    if options.resume:
        run.resume()
    run.train(cross_entropy)
    if run.rank == 0:
        save_model(run.model, run.tokenizer, HERE / "target")


def train_draft(options: argparse.Namespace) -> None:
    run = Run("draft", options.minutes, options.rate or 6e-3, options.rows, options.work)
    if options.resume:
        run.resume()
    run.train(distillation(load_model(options.teacher, "target"), share=0.1))
    if run.rank == 0:
        save_model(run.model, run.tokenizer, HERE / "draft")


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


def gumbel(seed: int, position: int) -> np.ndarray:
    """The noise of one position, as `pipeinfer.engine.sampling` draws it."""
    key = np.array([seed, position], dtype=np.uint64)
    uniform = np.random.Generator(np.random.Philox(key=key)).random(VOCAB, dtype=np.float64)
    return (-np.log(-np.log(np.clip(uniform, 1e-300, None)))).astype(np.float32)


def choose(logits: np.ndarray, position: int, temperature: float, seed: int) -> int:
    """The token at ``position`` from the logits of the row before it."""
    if temperature == 0:
        return int(np.argmax(logits))
    return int(np.argmax(logits / np.float32(temperature) + gumbel(seed, position)))


@torch.no_grad()
def generate(model: Decoder, prompt: list[int], count: int, temperature: float, seed: int) -> list[int]:
    """The prompt and ``count`` tokens more; borders between files do not end it."""
    tokens = list(prompt)
    logits, past = model(torch.tensor([prompt]))
    for _ in range(count):
        tokens.append(choose(logits[0, -1].numpy(), len(tokens), temperature, seed))
        logits, past = model(torch.tensor([tokens[-1:]]), past)
    return tokens


@torch.no_grad()
def agreement(draft: Decoder, tokens: list[int], start: int, temperature: float, seed: int) -> list[bool]:
    """Whether the draft, given the true text so far, chooses each token from ``start`` on."""
    rows = draft(torch.tensor([tokens]))[0][0].numpy()
    return [choose(rows[n - 1], n, temperature, seed) == tokens[n] for n in range(start, len(tokens))]


def measure(tokenizer: Tokenizer, temperature: float, count: int = 256) -> tuple[float, list[str]]:
    """Conditional acceptance over all prompts, and the generated texts."""
    target, draft = load_model(HERE / "target", "target"), load_model(HERE / "draft", "draft")
    hits, texts = [], []
    for seed, prompt in enumerate(read_prompts()):
        ids = tokenizer.encode(prompt).ids
        tokens = generate(target, ids, count, temperature, seed)
        hits += agreement(draft, tokens, len(ids), temperature, seed)
        texts.append(tokenizer.decode(tokens[len(ids) : len(ids) + 100], skip_special_tokens=False))
    return sum(hits) / len(hits), texts


def read_prompts() -> list[str]:
    return [entry["text"] for entry in tomllib.loads((HERE / "prompts.toml").read_text("utf-8"))["prompt"]]


MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")


def facts_table(run: Path) -> list[str]:
    """What the training runs recorded, as lines of Markdown."""
    data = json.loads((run / "data.json").read_text("utf-8"))
    rows = [
        f"Text: standard library of Python {data['python']}, {data['train_files']} files, "
        f"{data['train_bytes'] / 1e6:.1f} MB, {data['train_tokens']:,} tokens for training; "
        f"{data['held_out_files']} files, {data['held_out_tokens']:,} tokens held out.",
        "",
        "| | target | draft |",
        "|---|---|---|",
    ]
    runs = [json.loads((run / f"{role}.json").read_text("utf-8")) for role in SHAPES]
    sizes = [sum(t.numel() for t in load_model(HERE / role, role).parameters()) for role in SHAPES]
    rows.append("| parameters | " + " | ".join(f"{size:,}" for size in sizes) + " |")
    for label, key, form in (
        ("minutes", "minutes", ".0f"),
        ("steps", "steps", ",d"),
        ("tokens seen", "tokens", ",d"),
        ("tokens a step", "batch_tokens", ",d"),
        ("peak learning rate", "rate", "g"),
        ("held-out loss, nats a token", "held_out_loss", ".3f"),
    ):
        cells = [format(r["seconds"] / 60 if key == "minutes" else r[key], form) for r in runs]
        rows.append(f"| {label} | {cells[0]} | {cells[1]} |")
    return rows


def write_card(options: argparse.Namespace) -> None:
    """Measure the exported pair and put what was found between the marks of README.md."""
    tokenizer = Tokenizer.from_file(str(HERE / "target" / "tokenizer.json"))
    prompts, lines, samples = read_prompts(), facts_table(options.work), []
    lines += ["", "| temperature | conditional acceptance |", "|---|---|"]
    for temperature in (0.0, 0.8):
        share, texts = measure(tokenizer, temperature)
        lines.append(f"| {temperature:g} | {share:.3f} |")
        for index in options.samples:
            samples += [f"\nT = {temperature:g}, prompt and 100 tokens:\n", "```text"]
            samples += [(prompts[index] + texts[index]).strip(), "```"]
    text = (HERE / "README.md").read_text("utf-8")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    block = "\n".join([MARKS[0], *lines, *samples, MARKS[1]])
    (HERE / "README.md").write_text(before + block + after, encoding="utf-8")
    print(block)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pipeinfer-builtin")
    timed = argparse.ArgumentParser(add_help=False, parents=[shared])
    timed.add_argument("--minutes", type=float, required=True)
    timed.add_argument("--rate", type=float, help="peak learning rate")
    timed.add_argument("--rows", type=int, default=4, help="windows of 1024 tokens a step")
    timed.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    target = commands.add_parser("target", parents=[timed], help="train the tokenizer and the target")
    target.set_defaults(action=train_target)
    draft = commands.add_parser("draft", parents=[timed], help="distil the draft from the target")
    draft.add_argument("--teacher", type=Path, default=HERE / "target")
    draft.set_defaults(action=train_draft)
    card = commands.add_parser("card", parents=[shared], help="measure the pair and fill in README.md")
    card.add_argument("--samples", type=int, nargs="*", default=[0, 2], help="prompts to show in the card")
    card.set_defaults(action=write_card)
    return parser.parse_args()


if __name__ == "__main__":
    options = arguments()
    options.action(options)
