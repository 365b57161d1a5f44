"""How many KV cells the ranks reserve: what the text takes, not what the model would hold."""

import msgspec
import pytest

from pipeinfer.cluster import models
from pipeinfer.cluster.models import Models
from pipeinfer.cluster.plan import Plan


@pytest.fixture
def model_of(monkeypatch):
    """Sets the context that the target says it has."""

    def set_context(context):
        open_backend = models.open_backend

        def opened(*arguments):
            backend = open_backend(*arguments)
            info = backend.info
            backend.info = lambda model: msgspec.structs.replace(info(model), context=context)
            return backend

        monkeypatch.setattr(models, "open_backend", opened)

    return set_context


@pytest.mark.parametrize(
    ("context", "plan", "expected"),
    [
        (131_072, {"longest": 4000}, 4000 + 256),
        (131_072, {"longest": 10}, 1024 + 256),  # less is not worth saving
        (131_072, {"longest": 10, "cells": 77}, 77),
        (1024, {"longest": 4000}, 1024 + 256),  # no text is longer than the context
        (131_072, {}, 131_072 + 256),  # nobody said how long the texts are
    ],
)
def test_cells_are_those_of_the_longest_text_and_some(model_of, context, plan, expected):
    model_of(context)
    assert Models(Plan(draft=None, **plan)).cells == expected
