"""The stand-in for Juju's secrets of the model's user."""

import importlib
from pathlib import Path
from typing import Any

import pytest

AGENT = Path(__file__).resolve().parents[2] / "sandbox/juju"


@pytest.fixture
def user_secrets(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module as Juju's agent in a machine imports it."""
    monkeypatch.syspath_prepend(str(AGENT))
    return importlib.import_module("user_secrets")


@pytest.mark.parametrize(
    "key", ["", "ab", "app--id", "app-", "-app", "App", "1app", "app_id", "app.id", "app id", "größe", "app-id\n"]
)
def test_keys_that_juju_refuses(user_secrets: Any, key: str) -> None:
    """Juju refuses the whole secret, with the key, when one of its keys is not of Juju's form."""
    with pytest.raises(Exception, match="not valid") as caught:
        user_secrets.secret_content({"token": "x", key: "x"})
    assert type(caught.value).__name__ == "JujuError"


@pytest.mark.parametrize("key", ["token", "github-token", "app-id", "a-1-b", "a11"])
def test_keys_that_juju_accepts(user_secrets: Any, key: str) -> None:
    """Lower-case letters, digits and single hyphens between them, three characters or more."""
    assert user_secrets.secret_content({key: "x"}) == {key: "x"}
