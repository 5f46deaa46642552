"""The grammar is installed once for all tests (needs node and npm)."""

import pytest

from tests.logql.grammar import Grammar


@pytest.fixture(scope="session")
def grammar(tmp_path_factory: pytest.TempPathFactory) -> Grammar:
    return Grammar(tmp_path_factory.mktemp("logql"))
