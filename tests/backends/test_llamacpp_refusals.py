"""Models and files that the llama.cpp backend refuses, in one line each."""

import struct
from contextlib import suppress

import numpy as np
import pytest
from gguf_models import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from llamacpp_stages import backend, open_stages

from pipeinfer.engine.backend import BadModel
from pipeinfer_llamacpp import LlamaCppBackend
from pipeinfer_llamacpp.gguf_file import GgufFile


def without(name):
    return {"change": lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}}


def replaced(name, tensor):
    return {"change": lambda tensors: tensors | {name: tensor}}


BAD_MODELS = {
    "no embedding": (without("token_embd.weight"), "token_embd.weight"),
    "no norm": (without("output_norm.weight"), "output_norm.weight"),
    "no projection": (without("blk.3.ffn_up.weight"), r"blk\.3\.ffn_up\.weight"),
    "another shape": (replaced("blk.1.attn_v.weight", np.zeros((31, 64), np.float32)), r"attn_v\.weight"),
}


@pytest.mark.parametrize("share", [(0, 4), (1, 4)], ids=["whole", "stage"])
@pytest.mark.parametrize(("form", "expected"), BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_model_with_wrong_tensors_is_named_in_one_line(tmp_path, form, expected, share):
    path = write_gguf(tmp_path / "model.gguf", **form)
    with pytest.raises(BadModel, match=expected) as caught:
        backend(tmp_path).load(str(path), share, cells=8, sequences=1)
    assert "\n" not in str(caught.value)


def test_a_model_without_kv_cells_is_refused(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "mamba", tied=True)
    with pytest.raises(BadModel, match="came a recurrent one"):
        open_stages(backend(tmp_path), path)


def header(tensors=1, count=0, fields=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + fields


def field(key, kind, value):
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


BAD_FILES = {
    "empty": (b"", "empty"),
    "of another kind": (b"PK\3\4" + bytes(100), r"starts with b'PK"),
    "version 1": (header(version=1), "came 1:"),
    "big-endian": (header(version=3 << 24), "little-endian"),
    "cut off in the counts": (header()[:12], "cut off"),
    "cut off in a field": (header(count=1, fields=field("a", 8, struct.pack("<Q", 99))), "cut off"),
    "a field of no type": (header(count=1, fields=field("a", 77, bytes(8))), "unknown type 77"),
    "more fields than there are": (header(count=1 << 60), "cut off"),
    "no tensors": (header(tensors=0), "expected tensors"),
    "a shard": (header(0, 1, field("split.count", 2, struct.pack("<H", 3))) + bytes(64), "the first of 3 files"),
    "no alignment": (header(count=1, fields=field("general.alignment", 4, bytes(4))) + bytes(64), "general.alignment"),
}


@pytest.mark.parametrize(("content", "expected"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_named_in_one_line(tmp_path, content, expected):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    for ask in (backend(tmp_path).info, backend(tmp_path).tokenizer):
        with pytest.raises(BadModel, match=expected) as caught:
            ask(str(path))
        assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_a_bad_model(small, share):
    whole = small.read_bytes()
    path = small.with_name("cut.gguf")
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BadModel, match=r"cut off|empty|starts with"):
        GgufFile(path)


@settings(deadline=None)
@given(at=st.integers(0, 1400), value=st.binary(min_size=1, max_size=9))
def test_a_damaged_header_raises_nothing_but_bad_model(small, at, value):
    content = bytearray(small.read_bytes())
    content[at : at + len(value)] = value
    path = small.with_name("damaged.gguf")
    path.write_bytes(content)
    with suppress(BadModel):
        GgufFile(path)


@pytest.mark.parametrize("name", ["builtin:other", "builtin:", "builtin:../../tests"])
def test_an_unknown_builtin_names_the_two_there_are(shared, name):
    with pytest.raises(BadModel, match="builtin:target, builtin:draft"):
        backend(shared).info(name)


@pytest.mark.parametrize("options", [{"threads": 0}, {"gpu_layers": -1}, {"kv_type": "q4"}, {"quantisation": "q9"}])
def test_an_option_out_of_range_is_a_value_error(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        LlamaCppBackend(**options)


@pytest.mark.parametrize(("cells", "sequences"), [(0, 1), (1, 0), (1, 257)])
def test_a_stage_without_room_is_refused(shared, small, cells, sequences):
    with pytest.raises(ValueError, match="at least 1 cell and 1 to 256 sequences"):
        backend(shared).load(str(small), (0, 4), cells=cells, sequences=sequences)
