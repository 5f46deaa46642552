"""How runners register: the choice of the way, the labels, and what a just-in-time configuration may contain."""

import base64
import io
import json
import tarfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Any, cast

import pytest

import provision
import redaction
from errors import ConfigurationError, GithubApiError, RateLimitError, TemporaryGithubError
from gh.client import GithubClient
from gh.errors import StatusError
from gh.registration import (
    MOST_FILES,
    RESERVED,
    SIZE_LIMIT,
    JitRegistration,
    OptionRegistration,
    complete,
    read_configuration,
)
from models import Arch, GithubOrg, GithubPath, GithubRunner, RegistrationMethod
from tests.support.scripts import archived

ORG = GithubOrg("octo-org", "builders")
FILES = {
    ".runner": '\ufeff{"AgentId":"7","Ephemeral":"True"}',
    ".credentials": '{"Scheme":"OAuth","Data":{"clientId":"0b1f"}}',
    ".credentials_rsaparams": '{"d":"c2VjcmV0LXByaXZhdGUta2V5"}',
}


def encoded(content: Any) -> str:
    """A configuration as GitHub sends it."""
    return base64.b64encode(json.dumps(content).encode()).decode()


def as_base64(files: dict[str, str]) -> dict[str, str]:
    return {name: base64.b64encode(text.encode()).decode() for name, text in files.items()}


GOOD = encoded(as_base64(FILES))


class FakeClient:
    """GitHub with or without just-in-time configurations, in which names may be taken."""

    def __init__(self, jit: bool = True, answer: str = GOOD) -> None:
        self.jit = jit
        self.answer = answer
        self.server_version = "3.9.4"
        self.calls: list[str] = []
        self.runners: dict[str, GithubRunner] = {}
        self.labels: list[str] = []

    def has_jit(self, path: GithubPath) -> bool:
        return self.jit

    def check_group(self, path: GithubPath) -> None:
        self.calls.append("group")

    def group_id(self, path: GithubPath) -> int:
        self.calls.append("group id")
        return 5

    def registration_token(self, path: GithubPath) -> str:
        self.calls.append("token")
        return "AABB"

    def generate_jit_config(
        self, path: GithubPath, name: str, group: int, labels: Sequence[str]
    ) -> tuple[GithubRunner, str]:
        assert group == 5
        if name in self.runners:
            raise StatusError("taken", 409)
        self.labels = list(labels)
        self.runners[name] = GithubRunner(7, name, online=False, busy=False)
        return self.runners[name], self.answer

    def find_runner(self, path: GithubPath, name: str) -> GithubRunner | None:
        return self.runners.get(name)

    def delete_runner(self, path: GithubPath, runner_id: int) -> None:
        self.calls.append(f"delete {runner_id}")
        self.runners = {name: item for name, item in self.runners.items() if item.runner_id != runner_id}


def registration(client: FakeClient, method: RegistrationMethod = RegistrationMethod.AUTO) -> OptionRegistration:
    return OptionRegistration(method, cast(GithubClient, client), ORG, Arch.X64)


@pytest.mark.parametrize(
    ("method", "jit", "files"),
    [
        (RegistrationMethod.AUTO, True, True),
        (RegistrationMethod.AUTO, False, False),
        (RegistrationMethod.JIT, True, True),
        (RegistrationMethod.TOKEN, True, False),
        (RegistrationMethod.TOKEN, False, False),
    ],
)
def test_the_option_decides(method: RegistrationMethod, jit: bool, files: bool) -> None:
    """``auto`` is just in time where the server has it; ``token`` never is."""
    made = registration(FakeClient(jit), method)
    made.prepare()
    data = made.register("app-0-aa", ["app"])
    assert (bool(data.files), data.token, data.runner_id) == ((True, "", 7) if files else (False, "AABB", None))


def test_jit_on_a_server_without_it_blocks() -> None:
    """The error names the option, the version that is needed and the server's."""
    with pytest.raises(
        ConfigurationError, match=r"registration: jit needs .* 3\.10 or newer, .* is 3\.9\.4; use auto or token"
    ):
        registration(FakeClient(jit=False), RegistrationMethod.JIT).prepare()


def test_a_server_without_jit_is_found_without_a_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the option asks for it: the other ways are possible on every server, so it is not asked."""
    with pytest.raises(ConfigurationError, match="registration: jit needs"):
        registration(FakeClient(jit=False), RegistrationMethod.JIT).check()
    registration(FakeClient(), RegistrationMethod.JIT).check()
    client = FakeClient(jit=False)
    monkeypatch.setattr(client, "has_jit", None)
    for method in (RegistrationMethod.AUTO, RegistrationMethod.TOKEN):
        registration(client, method).check()
    assert client.calls == []


def test_one_token_serves_all_runners() -> None:
    """Each further runner costs no request."""
    client = FakeClient()
    made = registration(client, RegistrationMethod.TOKEN)
    made.prepare()
    for name in "ab":
        made.register(name, [])
    assert client.calls == ["group", "token"]


def test_permission_and_group_are_checked_before_anything_is_removed() -> None:
    """Just in time, nothing shared is needed; what would keep runners from being registered is found all the same."""
    client = FakeClient()
    made = registration(client)
    made.prepare()
    made.register("a", [])
    assert client.calls == ["group id", "token"]


def test_labels_are_complete() -> None:
    """GitHub adds none to a record: its own come first, and each once, whatever its case."""
    client = FakeClient()
    registration(client).register("a", ["app", "jammy", "linux", "App", "gpu"])
    assert client.labels == ["self-hosted", "Linux", "X64", "app", "jammy", "gpu"]
    assert complete([], Arch.ARM64) == ["self-hosted", "Linux", "ARM64"]


def test_a_lost_answer_leaves_no_record() -> None:
    """A name that is taken was registered by a request whose answer was lost: that record has no instance."""
    client = FakeClient()
    client.runners["a"] = GithubRunner(3, "a", online=False, busy=False)
    assert registration(client).register("a", []).runner_id == 7
    assert client.calls == ["group id", "delete 3"]


@pytest.mark.parametrize("busy", [True, False])
def test_a_runner_of_that_name_that_works_is_left_alone(busy: bool) -> None:
    """It cannot be the record of a lost answer: nothing has its configuration."""
    client = FakeClient()
    client.runners["a"] = GithubRunner(3, "a", online=not busy, busy=busy)
    with pytest.raises(StatusError):
        registration(client).register("a", [])
    assert client.calls == ["group id"]


def test_a_record_with_a_bad_configuration_is_removed() -> None:
    """No instance can use it."""
    client = FakeClient(answer="nonsense")
    with pytest.raises(GithubApiError, match="the just-in-time configuration is not valid"):
        registration(client).register("a", [])
    assert client.runners == {}


class LosingClient(FakeClient):
    """GitHub whose answers are lost, or lack the configuration, after it has made the record."""

    lost: Exception = TemporaryGithubError("no answer from api.github.com in time")
    hidden = False

    def generate_jit_config(
        self, path: GithubPath, name: str, group: int, labels: Sequence[str]
    ) -> tuple[GithubRunner, str]:
        super().generate_jit_config(path, name, group, labels)
        raise self.lost

    def find_runner(self, path: GithubPath, name: str) -> GithubRunner | None:
        self.calls.append("find")
        if self.hidden:
            raise TemporaryGithubError("server error (HTTP 503)")
        return super().find_runner(path, name)


@pytest.mark.parametrize(
    "lost", [TemporaryGithubError("no answer"), GithubApiError("the answer has no valid encoded_jit_config")]
)
def test_a_record_whose_answer_never_came_is_removed(lost: Exception) -> None:
    """It is looked up by its name; otherwise it would be listed as offline until a reconcile finds it."""
    client = LosingClient()
    client.lost = lost
    with pytest.raises(type(lost), match=str(lost)):
        registration(client).register("a", [])
    assert client.runners == {}


def test_a_record_that_cannot_be_removed_does_not_hide_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """The next reconcile removes it, and the log has why it is still there."""
    client = LosingClient()
    client.hidden = True
    with pytest.raises(TemporaryGithubError, match="no answer"):
        registration(client).register("a", [])
    assert "a may still be registered, the next reconcile deregisters it: server error (HTTP 503)" in caplog.text


@pytest.mark.parametrize(
    "refusal", [StatusError("refused", 422), RateLimitError("rate limit reached", datetime.now(timezone.utc))]
)
def test_a_refusal_leaves_nothing_to_look_for(refusal: Exception) -> None:
    """GitHub makes no record then, and a limit is not used up further."""
    client = LosingClient()
    client.lost = refusal
    with pytest.raises(type(refusal)):
        registration(client).register("a", [])
    assert "find" not in client.calls


def test_files_are_read_as_they_are() -> None:
    """A byte order mark and unknown files are kept: the runner agent decides."""
    more = {**FILES, ".credentials_new": "x"}
    assert read_configuration(encoded(as_base64(more))) == more


def test_an_unknown_file_may_have_any_bytes() -> None:
    """They reach the instance as they are: a new file of GitHub's does not stop registrations."""
    data = bytes(range(256))
    files = read_configuration(encoded({**as_base64(FILES), ".keystore": base64.b64encode(data).decode()}))

    packed = archived([provision.InstanceFile(PurePosixPath("/x/.keystore"), files[".keystore"])])
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        file = archive.extractfile("x/.keystore")
        assert file is not None
        assert file.read() == data


def test_a_configuration_is_masked() -> None:
    """It lets whoever has it act as the runner."""
    read_configuration(GOOD)
    for secret in (GOOD, FILES[".credentials_rsaparams"]):
        assert redaction.redact(f"<{secret}>") == "<…>"
    data = JitRegistration(cast(GithubClient, FakeClient()), ORG, Arch.X64).register("a", [])
    assert "OAuth" not in repr(data)


BAD: dict[str, Any] = {
    "no base64": "{}",
    "no JSON": base64.b64encode(b"nonsense").decode(),
    "deep": base64.b64encode(b"[" * 40000).decode(),
    "a list": encoded([FILES]),
    "no text": encoded({**as_base64(FILES), ".x": 7}),
    "no base64 inside": encoded({**FILES}),
    "not UTF-8": encoded({**as_base64(FILES), ".runner": base64.b64encode(b"\xff").decode()}),
    "a key that is not UTF-8": encoded(
        {**as_base64(FILES), ".credentials_rsaparams": base64.b64encode(b"\xff").decode()}
    ),
    "a path": encoded(as_base64({**FILES, "../x": ""})),
    "a folder": encoded(as_base64({**FILES, ".x/y": ""})),
    "a plain name": encoded(as_base64({**FILES, "run.sh": ""})),
    "the folder above": encoded(as_base64({**FILES, "..": ""})),
    "a line end": encoded(as_base64({**FILES, ".x\n": ""})),
    "a file of the charm": encoded(as_base64({**FILES, ".env": "ACTIONS_RUNNER_HOOK_JOB_STARTED="})),
    "no credentials": encoded(as_base64({".runner": FILES[".runner"]})),
    "too many files": encoded(as_base64({**FILES, **{f".x{number}": "" for number in range(MOST_FILES)}})),
    "too large": encoded(as_base64({**FILES, ".x": "x" * SIZE_LIMIT})),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_an_odd_configuration_is_refused(text: str) -> None:
    """Only plain files whose names begin with a dot, none of the charm's own, few and small."""
    with pytest.raises(GithubApiError, match="the just-in-time configuration is not valid"):
        read_configuration(text)


def test_files_of_the_charm_are_reserved() -> None:
    """A configuration cannot replace the pre-job hook's setting or what the set-up runs."""
    own = {provision.ENV_FILE, provision.POLICY_TOKEN_FILE, provision.REGISTER_SCRIPT}
    assert {path.name for path in own} <= RESERVED


class VanishingClient(FakeClient):
    """GitHub that removes a record between its refusal of the name and the question for it."""

    def find_runner(self, path: GithubPath, name: str) -> GithubRunner | None:
        self.runners.pop(name)
        return None


def test_a_name_that_is_free_again_is_used() -> None:
    """The record of a lost answer may be gone when it is looked for."""
    client = VanishingClient()
    client.runners["a"] = GithubRunner(7, "a", online=False, busy=False)

    assert registration(client).register("a", []).runner_id == 7
