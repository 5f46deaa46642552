"""Which credential a unit uses, and what the secret of a GitHub App may contain."""

import logging
from functools import partial
from typing import Any

import pytest
from ops import testing

import charm_state
import redaction
import service
from gh.app import App
from gh.auth import Pat
from models import AppCredentials, RegistrationMethod
from sandbox.github import tls
from tests.support import fakes
from tests.unit.test_charm_state import error_of, errors_of, load, no_proxies

__all__ = ["no_proxies"]

pytestmark = pytest.mark.usefixtures("quick_yaml")

LINE = "MIIEpAIBAAKCAQEA1234567890abcdefghijklmnopqrstuvwxyz+/ABCDEFGHIJKL"
KEY = f"-----BEGIN RSA PRIVATE KEY-----\n{LINE}\nTUFSS0VELWtleQ==\n-----END RSA PRIVATE KEY-----\n"
PKCS8 = KEY.replace("RSA ", "")
APP = {"app-id": "Iv23liABC", "private-key": KEY}


def app_of(content: dict[str, str], **options: str | None) -> AppCredentials | None:
    """The App of a state whose secret has this content."""
    secret = testing.Secret(content)
    return load({"token": "", "app-secret": secret.id, **options}, secrets=(secret,)).app


def fault_of(content: dict[str, str]) -> str:
    """The only thing that is wrong with a secret."""
    secret = testing.Secret(content)
    [line] = errors_of({"app-secret": secret.id}, secrets=(secret,))
    return line


def test_an_app_is_enough() -> None:
    """Neither a token nor the number of the installation is needed."""
    assert app_of(APP) == AppCredentials("Iv23liABC", KEY)
    assert app_of({**APP, "app-id": " 4711\n", "installation-id": "42"}) == AppCredentials("4711", KEY, 42)


@pytest.mark.parametrize(
    ("given", "kept"),
    [(KEY, KEY), (PKCS8, PKCS8), (f"\n{KEY}\n\n", KEY), (KEY.replace("\n", "\r\n"), KEY), (KEY.rstrip(), KEY)],
    ids=["PKCS#1", "PKCS#8", "blank lines", "Windows line ends", "no line end"],
)
def test_forms_of_a_private_key(given: str, kept: str) -> None:
    """A key is taken as GitHub gives it, and as other programs write it."""
    assert app_of({**APP, "private-key": given}) == AppCredentials("Iv23liABC", kept)


PUBLIC = KEY.replace("RSA PRIVATE", "PUBLIC")
ENCRYPTED = PKCS8.replace("PRIVATE", "ENCRYPTED PRIVATE")
OPENSSH = KEY.replace("RSA", "OPENSSH")
FORM = "private-key is not an unencrypted private key in PEM form"
WRONG: dict[str, tuple[dict[str, str], str]] = {
    "no id": ({"private-key": KEY}, "the secret has no key `app-id`"),
    "no key": ({"app-id": "1"}, "the secret has no key `private-key`; run `juju update-secret secret:"),
    "blank id": ({**APP, "app-id": " "}, "the secret has no key `app-id`"),
    "odd id": ({**APP, "app-id": "my app"}, "app-id is neither the client id nor the number of a GitHub App"),
    "odd installation": (
        {**APP, "installation-id": "0x1"},
        "installation-id is not a number; correct installation-id, or remove it",
    ),
    "a public key": ({**APP, "private-key": PUBLIC}, FORM),
    "an encrypted key": ({**APP, "private-key": ENCRYPTED}, FORM),
    "a key of OpenSSH": ({**APP, "private-key": OPENSSH}, FORM),
    "a name of a file": ({**APP, "private-key": "app.private-key.pem"}, FORM),
    "two keys": ({**APP, "private-key": KEY + KEY}, FORM),
}


@pytest.mark.parametrize(("content", "text"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_secret_blocks(content: dict[str, str], text: str) -> None:
    """Each mistake is named, also where a token is set that could be used instead; the key is never shown."""
    line = fault_of(content)
    assert line.startswith(f"app-secret: {text}")
    assert LINE not in line


def test_a_secret_that_is_not_granted_blocks() -> None:
    """The token beside it is not used instead."""
    line = error_of({"app-secret": "secret:d0000000000000000000"})
    assert line.startswith("app-secret: ")
    assert "juju grant-secret secret:d0000000000000000000 " in line


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        (("app-secret", "token-secret", "token"), "app-secret is used; ignored: token-secret, token"),
        (("app-secret", "token"), "app-secret is used; ignored: token"),
        (("token-secret", "token"), "token-secret is used; ignored: token"),
        (("app-secret",), None),
        (("token",), None),
    ],
)
def test_the_first_credential_that_is_set_is_used(
    options: tuple[str, ...], warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """app-secret, then token-secret, then token; further ones are a warning in the log, not an error."""
    app, token = testing.Secret(APP), testing.Secret({"token": "ghp_secret_one"})
    values = {"app-secret": app.id, "token-secret": token.id, "token": "ghp_option"}
    config = {"token": None, **{name: values[name] for name in options}}
    with caplog.at_level(logging.WARNING):
        state = load(config, secrets=(app, token))

    used = {"app-secret": ("", True), "token-secret": ("ghp_secret_one", False), "token": ("ghp_option", False)}
    assert (state.token, state.app is not None) == used[options[0]]
    found = [record.getMessage() for record in caplog.records if record.name == "charm_state"]
    assert found == ([warning] if warning else [])


def test_the_client_is_what_the_options_say() -> None:
    """A GitHub App where there is one, the token otherwise."""
    kinds: dict[str, dict[str, Any]] = {
        "token": {"token": "ghp_x"},
        "app": {"token": "", "app": AppCredentials("1", KEY)},
    }
    clients = {name: service.github_client(fakes.state(**credentials)) for name, credentials in kinds.items()}

    assert {name: type(client.auth) for name, client in clients.items()} == {"token": Pat, "app": App}


def test_an_app_is_enough_for_an_action_that_needs_github_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """check-runners works although another option is not valid."""
    monkeypatch.setattr(charm_state, "load", partial(charm_state.load, needed=("github_url", "path", "token")))
    assert app_of(APP, **{"vm-memory": "much"}) == AppCredentials("Iv23liABC", KEY)


def test_the_authorities_are_enough_for_an_action_that_needs_github_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """check-runners reaches a server with a certificate of its own although another option is not valid."""
    monkeypatch.setattr(charm_state, "load", partial(charm_state.load, needed=("github_url", "path", "token")))
    certificate = tls.make("localhost").pem
    found = load({"ca-certificates": certificate, "vm-memory": "much"})
    assert (found.is_partial, found.ca_certificates) == (True, (certificate,))


def test_a_key_is_masked() -> None:
    """Neither the key nor a line of it is in a text of the state or in any text that the charm shows."""
    credentials = app_of(APP)
    assert LINE not in repr(credentials)
    for secret in (KEY, LINE, "TUFSS0VELWtleQ=="):
        assert redaction.redact(f"<{secret.strip()}>") == "<…>"


@pytest.mark.parametrize("value", list(RegistrationMethod))
def test_ways_of_registering(value: RegistrationMethod) -> None:
    """``auto``, ``jit`` and ``token``."""
    assert load({"registration": f" {value.value} "}).registration is value


def test_another_way_of_registering_blocks() -> None:
    """The error names the values."""
    assert error_of({"registration": "JIT"}) == "registration: 'JIT' is not one of auto, jit, token; set one of them"
