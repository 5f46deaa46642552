"""The grammar is installed and started once for all tests (needs node and npm)."""

from collections.abc import Iterator

import pytest

from tests.logql.grammar import Grammar


@pytest.fixture(scope="session")
def grammar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grammar]:
    grammar = Grammar(tmp_path_factory.mktemp("logql"))
    yield grammar
    grammar.close()
