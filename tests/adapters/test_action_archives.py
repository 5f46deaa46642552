"""The download of actions' archives, against the stand-in for GitHub."""

import io
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from errors import GithubApiError
from gh.answers import ANSWER_LIMIT
from gh.archives import PUBLIC_API, ActionArchives
from host.action_archives import CHECK_COMMAND, UNPACKED_LIMIT
from sandbox import github
from sandbox.github.action_repositories import tarball
from sandbox.github.control import GitHubControl
from sandbox.github.state import UNAUTHENTICATED_LIMIT

ACTION = "octo-org/greet@releases/v1"
LIMIT = 1 << 20
NOBODY = "http://127.0.0.1:9"
COMMITS = "/api/v3/repos/octo-org/greet/commits/"


@pytest.fixture
def public() -> Iterator[github.GitHub]:
    """What stands for github.com beside the Enterprise Server ``hub``."""
    with github.serve("127.0.0.1", 0) as served:
        yield served


@pytest.fixture
def archives(hub: github.GitHub, public: github.GitHub) -> ActionArchives:
    return ActionArchives(hub.url, deadline=20, public_api=public.api_url)


def asked(control: GitHubControl) -> list[str]:
    return [entry["path"] for entry in control.requests()]


def reason(archives: ActionArchives, action: str = ACTION, limit: int = LIMIT) -> str:
    with pytest.raises(GithubApiError) as raised:
        archives.fetch(action, io.BytesIO(), limit)
    return str(raised.value)


def test_an_archive_is_that_of_the_refs_commit(control: GitHubControl, archives: ActionArchives) -> None:
    """The file has GitHub's archive of the commit and nothing else, and no request has a credential."""
    commit, file = control.add_action(ACTION), io.BytesIO(b"x" * 5000)

    assert archives.fetch(ACTION, file, LIMIT) == commit

    assert file.getvalue() == tarball("octo-org/greet", commit)
    with tarfile.open(fileobj=io.BytesIO(file.getvalue())) as unpacked:
        assert unpacked.getnames() == [f"octo-org-greet-{commit[:7]}", f"octo-org-greet-{commit[:7]}/action.yml"]
    sent = control.requests()
    assert [entry["path"] for entry in sent] == [
        f"{COMMITS}releases/v1",
        f"/api/v3/repos/octo-org/greet/tarball/{commit}",
        f"/_codeload/octo-org/greet/legacy.tar.gz/{commit}",
    ]
    assert {entry["token_hint"] for entry in sent} == {None}


@pytest.mark.parametrize("ref", ["v1", "heads/v1", "0" * 40])
def test_a_moved_ref_gives_todays_commit(control: GitHubControl, archives: ActionArchives, ref: str) -> None:
    """Each build asks what the ref points to; the name of a commit stands for itself."""
    control.add_action("octo-org/greet@v1")
    commit = control.add_action("octo-org/greet@v1")
    wanted = commit if ref.isdigit() else ref

    assert archives.fetch(f"octo-org/greet@{wanted}", io.BytesIO(), LIMIT) == commit


def test_a_server_without_the_action_leads_to_github_com(
    control: GitHubControl, public: github.GitHub, archives: ActionArchives
) -> None:
    """An Enterprise Server is asked first, also one that refuses anonymous requests, and then github.com."""
    commit = GitHubControl(public.url).add_action(ACTION)
    control.add_fault(path="/commits/", status=401, body='{"message": "Must authenticate to access this API."}')

    assert archives.fetch(ACTION, io.BytesIO(), LIMIT) == commit

    assert asked(control) == [f"{COMMITS}releases/v1"]


@pytest.mark.parametrize(
    ("url", "apis"),
    [
        ("https://github.com", [PUBLIC_API]),
        ("https://octo.ghe.com", [PUBLIC_API]),
        ("https://github.example.com", ["https://github.example.com/api/v3", PUBLIC_API]),
    ],
)
def test_where_archives_are_looked_for(url: str, apis: list[str]) -> None:
    """Public actions are at github.com; an Enterprise Server has actions of its own."""
    assert ActionArchives(url).apis == apis


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no commit": ({"path": "/commits/", "body": "main"}, "127.0.0.1: the answer is not the name of a commit"),
    "a path": (
        {"path": "/commits/", "body": f"{'0' * 40}/../../x"},
        "127.0.0.1: the answer is not the name of a commit",
    ),
    "a long answer": ({"path": "/commits/", "body": "0" * 5000}, "127.0.0.1: larger than 1024 bytes"),
    "an error": ({"path": "/commits/", "status": 503}, "127.0.0.1: server error (HTTP 503)"),
    "an endless error": (
        {"path": "/commits/", "status": 404, "pad": ANSWER_LIMIT, "body": "x"},
        f"127.0.0.1: the answer is larger than {ANSWER_LIMIT} bytes",
    ),
    "no archive": ({"path": "/_codeload/", "status": 404}, "127.0.0.1: HTTP 404"),
    "a reset": ({"path": "/_codeload/", "reset": True}, "127.0.0.1: the connection to 127.0.0.1:"),
    "a cut": ({"path": "/_codeload/", "cut": 50}, "127.0.0.1: the connection to 127.0.0.1:"),
    "a limit": (
        {"path": "/commits/", "status": 403, "body": '{"message": "API rate limit exceeded for 192.0.2.1."}'},
        "127.0.0.1: rate limit reached until",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_failure_is_named(hub: github.GitHub, control: GitHubControl, name: str) -> None:
    """The reason says which GitHub failed, and how; every GitHub that was asked is named."""
    fault, words = FAULTS[name]
    control.add_action(ACTION)
    control.add_fault(**fault)

    found = reason(ActionArchives(hub.url, deadline=20, public_api=NOBODY))

    assert found.startswith(words), found
    assert "; 127.0.0.1: 127.0.0.1:9 refuses the connection" in found


def test_proxies_of_the_environment_are_used(hub: github.GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the client of GitHub; the reason names the proxy without its password."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://user:word@localhost:9")

    found = reason(ActionArchives(hub.url, deadline=20, public_api=NOBODY))

    assert found.startswith("127.0.0.1: the proxy localhost:9 refuses the connection")
    assert "word" not in found


def test_authorities_of_the_option_are_trusted() -> None:
    """A server with a certificate of one's own authority is asked only if the option has that authority."""
    with github.serve("127.0.0.1", 0, tls=True) as hub:
        assert hub.ca is not None
        trusting = ActionArchives(hub.url, (hub.ca,), deadline=20, public_api=NOBODY)

        assert len(trusting.fetch("actions/checkout@v5", io.BytesIO(), LIMIT)) == 40
        assert "is not trusted" in reason(ActionArchives(hub.url, deadline=20, public_api=NOBODY))


def test_what_does_not_exist_is_named(archives: ActionArchives) -> None:
    """A repository that is missing and a ref that is missing have GitHub's own answers."""
    assert reason(archives, "actions/none@v1") == "127.0.0.1: HTTP 404; 127.0.0.1: HTTP 404"
    assert "HTTP 422: No commit found for SHA: v99" in reason(archives, "actions/checkout@v99")


def test_an_archive_has_a_size(hub: github.GitHub) -> None:
    """A larger archive is left, wherever it comes from."""
    archives = ActionArchives(hub.url, deadline=20, public_api=NOBODY)

    assert reason(archives, "actions/checkout@v5", 100).startswith("127.0.0.1: larger than 100 bytes")


@pytest.mark.parametrize(("status", "requests"), [(502, 2), (429, 1)], ids=["server error", "limit"])
def test_who_is_in_trouble_is_not_asked_again(
    control: GitHubControl, public: github.GitHub, archives: ActionArchives, status: int, requests: int
) -> None:
    """After a rate limit, or the second temporary error in a row, the other GitHub is asked alone."""
    control.add_fault(path="/commits/", status=status)
    for _ in range(3):
        archives.fetch("actions/checkout@v5", io.BytesIO(), LIMIT)

    assert len(asked(control)) == requests
    assert len(asked(GitHubControl(public.url))) == 9
    archives.apis.clear()
    assert reason(archives) == "no GitHub can be asked any more"


@pytest.mark.parametrize("action", ["actions/checkout@v5", "actions/none@v1"], ids=["archive", "no such action"])
def test_single_errors_cost_one_action_each(control: GitHubControl, hub: github.GitHub, action: str) -> None:
    """A GitHub that answers in between, also that it has no such action, is asked on."""
    archives = ActionArchives(hub.url, deadline=20, public_api=NOBODY)
    for _ in range(2):
        control.add_fault(path="/commits/", status=502, times=1)
        assert "server error" in reason(archives, "actions/checkout@v5")
        with suppress(GithubApiError):
            archives.fetch(action, io.BytesIO(), LIMIT)

    assert len(archives.fetch("actions/checkout@v5", io.BytesIO(), LIMIT)) == 40


@pytest.mark.parametrize(("scheme", "followed"), [("https", True), ("http", False)])
def test_no_archive_comes_without_encryption(monkeypatch: pytest.MonkeyPatch, scheme: str, followed: bool) -> None:
    """A GitHub that is asked over TLS cannot redirect the download to plain HTTP."""
    asked_for: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked_for.append(str(request.url))
        if "/commits/" in request.url.path:
            return httpx2.Response(200, stream=httpx2.ByteStream(b"0" * 40))
        if "/tarball/" in request.url.path:
            return httpx2.Response(302, headers={"Location": f"{scheme}://files.example/archive"})
        return httpx2.Response(200, stream=httpx2.ByteStream(b"archive"))

    monkeypatch.setattr(httpx2, "Client", partial(httpx2.Client, transport=httpx2.MockTransport(answer)))
    archives, file = ActionArchives("https://github.com", public_api="https://api.example"), io.BytesIO()

    if followed:
        assert archives.fetch(ACTION, file, LIMIT) == "0" * 40
    else:
        with pytest.raises(GithubApiError, match=r"^api\.example: redirected to files\.example without encryption$"):
            archives.fetch(ACTION, file, LIMIT)

    assert (f"{scheme}://files.example/archive" in asked_for) is followed
    assert (file.getvalue() == b"archive") is followed


def test_anonymous_requests_have_a_limit(hub: github.GitHub) -> None:
    """Where an address has used up its requests of the hour, the limit's end is named."""
    hub.state.budget("address 127.0.0.1", UNAUTHENTICATED_LIMIT).used = UNAUTHENTICATED_LIMIT - 1
    archives = ActionArchives(hub.url, deadline=20, public_api=NOBODY)

    assert reason(archives, "actions/checkout@v5").startswith("127.0.0.1: rate limit reached until")


def packed(*names: str, **headers: str) -> bytes:
    """A tar.gz with empty files of these names, and with keywords in its PAX header."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT, pax_headers=headers) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


WHOLE = tarball("octo-org/greet", "0" * 40)
NOT_UNPACKED, TOP = "it cannot be unpacked\n", "it has not exactly one folder at the top\n"
FILES = {
    "whole": (WHOLE, ""),
    "unknown keywords": (packed("one/file", **{f"keyword{number}": "x" for number in range(99)}), ""),
    "cut": (WHOLE[:-20], NOT_UNPACKED),
    "page": (b"<html>404</html>", NOT_UNPACKED),
    "no folder": (packed(), TOP),
    "a file": (packed("file"), TOP),
    "two folders": (packed("one/file", "two/file"), TOP),
}


def check(part: Path, target: Path, limit: int = UNPACKED_LIMIT) -> "subprocess.CompletedProcess[str]":
    """Run what the builder runs, with a limit in bytes for what is unpacked."""
    command = [word.replace(str(UNPACKED_LIMIT), str(limit)) for word in CHECK_COMMAND]
    return subprocess.run([*command, str(part), str(target)], capture_output=True, text=True)


@pytest.mark.parametrize("name", FILES)
def test_only_what_can_be_unpacked_gets_its_name(tmp_path: Path, name: str) -> None:
    """An archive that the agent can use is renamed, everything else is left alone; LXD keeps no word of tar."""
    (tmp_path / "part").write_bytes(FILES[name][0])

    done = check(tmp_path / "part", tmp_path / "archive.tar.gz")

    assert (done.stdout, done.stderr) == ("", FILES[name][1])
    assert (done.returncode == 0) is (FILES[name][1] == "")
    left = {path.name for path in tmp_path.iterdir()} - {"part.unpacked"}
    assert left == ({"part"} if done.returncode else {"archive.tar.gz"})
    assert done.returncode or not (tmp_path / "part.unpacked").exists()


@pytest.mark.parametrize("name", ["missing", "too large"])
def test_nothing_gets_the_name_of_an_archive(tmp_path: Path, name: str) -> None:
    """Without a file, or with one that is unpacked to more than the limit, there is no archive."""
    if name == "too large":
        (tmp_path / "part").write_bytes(WHOLE)

    assert check(tmp_path / "part", tmp_path / "archive.tar.gz", 600).stderr == NOT_UNPACKED

    assert not (tmp_path / "archive.tar.gz").exists()


@pytest.mark.parametrize("path", ["/commits/", "/_codeload/"])
@pytest.mark.parametrize("fault", [{"silence": True}, {"drip": 0.2}], ids=["silence", "drip"])
def test_all_archives_have_one_deadline(
    hub: github.GitHub, control: GitHubControl, fault: dict[str, Any], path: str
) -> None:
    """A GitHub that does not answer, or byte by byte, costs a build no more than the deadline."""
    control.add_action(ACTION)
    control.add_fault(path=path, **fault)
    started = time.monotonic()

    assert "in time" in reason(ActionArchives(hub.url, deadline=1.1, public_api=NOBODY))

    assert time.monotonic() - started < 3
