"""A service over a small pair, and a server in front of it, for all tests of the endpoint."""

from collections.abc import Iterator

import pytest
from small_pair import Pair
from web_client import TEMPLATE, Served, WebClient, serving, web_server

from pipeinfer.cluster.plan import Plan


@pytest.fixture(scope="session")
def served(small_pair: Pair) -> Iterator[Served]:
    # One that always drafts: adaptive may find here that plain decoding is the fastest.
    with serving(Plan(**small_pair._asdict(), stages=2, cells=4096), strategy="pipeinfer") as made:
        yield made


@pytest.fixture(scope="session")
def web(served: Served) -> Iterator[WebClient]:
    with web_server(*served) as client:
        yield client


@pytest.fixture(scope="session")
def chat(served: Served) -> Iterator[WebClient]:
    """The same service as if its model had a chat template."""
    with web_server(*served, template=TEMPLATE) as client:
        yield client
