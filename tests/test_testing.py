"""The kits for plug-in authors, seen from outside."""

import pytest

from pipeinfer import testing


def test_a_name_that_is_not_there_names_those_that_are():
    with pytest.raises(AttributeError, match="BackendConformance, TransportConformance, write_llama"):
        _ = testing.BackendConformity


def test_a_seed_writes_the_same_model_again(tmp_path):
    one, other = (testing.write_llama(tmp_path / name, layers=2, seed=5) for name in ("one", "other"))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="257 tokens or more, came 256"):
        testing.write_llama(tmp_path, vocab=256)
