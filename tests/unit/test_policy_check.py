"""Which jobs the pre-job script refuses: by the policy service, and by who contributed."""

import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from metrics.runner import (
    POST_JOB_METRICS_FILE_NAME,
    PostJobStatus,
)
from tests.support.scripts import (
    JOB,
    POWER_OFF,
    Shell,
)


class PolicyService:
    """A policy service that answers each check with ``status`` and ``words``, and records its requests."""

    def __init__(self) -> None:
        self.status = 204
        self.words = b""
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.requests.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(service.status)
                self.send_header("Content-Length", str(len(service.words)))
                self.end_headers()
                self.wfile.write(service.words)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[PolicyService]:
    running = PolicyService()
    yield running
    running.close()


def ask(shell: Shell, url: str, token: str = "one-time-token", **job: str) -> "subprocess.CompletedProcess[str]":
    """Run the pre-job script of a runner with a policy service; curl is the real one and notes its arguments."""
    curl = shutil.which("curl")
    shell.stub("curl", f'exec {curl} "$@"')
    # The runner agent kills a script that does not end.
    shell.stub("sleep", '[ "$1" != infinity ] || kill -KILL $PPID')
    (shell.folder / "policy-token").write_text(token)
    # A proxy that leads nowhere: the service is asked directly.
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    return shell.run(shell.render("pre-job.sh.j2", policy_url=url), **{**JOB, **proxies, **job})


@pytest.mark.parametrize(
    ("event", "path", "body"),
    [
        (
            "pull_request",
            "/pull_request/check-run",
            {
                "repository_name": "octo-org/demo",
                "source_repository_name": "contributor/demo",
                "target_branch_name": "main",
                "source_branch_name": "fix-'\"$(touch canary)",
                "commit_sha": "c0ffee",
            },
        ),
        ("push", "/push/check-run", {"repository_name": "octo-org/demo"}),
        ("workflow_dispatch", "/workflow_dispatch/check-run", {"repository_name": "octo-org/demo"}),
        ("schedule", "/schedule/check-run", {"repository_name": "octo-org/demo"}),
        ("release", "/default/check-run", {"repository_name": "octo-org/demo"}),
    ],
)
def test_what_the_policy_service_is_asked(
    shell: Shell, service: PolicyService, event: str, path: str, body: dict[str, str]
) -> None:
    """Each kind of event has its own check, with the fields that this check needs."""
    event_file = shell.folder / "event.json"
    head = {"repo": {"full_name": "contributor/demo"}, "sha": "c0ffee"}
    event_file.write_text(json.dumps({"pull_request": {"head": head}}))

    done = ask(
        shell,
        service.url,
        GITHUB_EVENT_NAME=event,
        GITHUB_EVENT_PATH=str(event_file),
        GITHUB_BASE_REF="main",
        GITHUB_HEAD_REF="fix-'\"$(touch canary)",
    )

    assert done.returncode == 0
    [(asked, headers, given)] = service.requests
    assert (asked, given) == (path, body)
    assert headers["Authorization"] == "Bearer one-time-token"
    assert headers["Content-Type"] == "application/json"
    assert not (shell.folder / "canary").exists()


@pytest.mark.parametrize(
    ("event", "variables"),
    [
        ("pull_request_target", {"GITHUB_BASE_REF": "main", "GITHUB_HEAD_REF": "fix"}),
        ("pull_request_review", {}),
        ("pull_request_review_comment", {"GITHUB_BASE_REF": "", "GITHUB_HEAD_REF": ""}),
        ("issue_comment", {}),
    ],
)
@pytest.mark.parametrize("fork", ["contributor/demo", None])
def test_events_of_pull_requests_are_checked_as_pull_requests(
    shell: Shell, service: PolicyService, event: str, variables: dict[str, str], fork: str | None
) -> None:
    """Branches come from the payload where the environment has none; a deleted fork does not lead to another check."""
    event_file = shell.folder / "event.json"
    head = {"repo": fork and {"full_name": fork}, "sha": "c0ffee", "ref": "fix"}
    event_file.write_text(json.dumps({"pull_request": {"head": head, "base": {"ref": "main"}}}))

    ask(shell, service.url, GITHUB_EVENT_NAME=event, GITHUB_EVENT_PATH=str(event_file), **variables)

    [(asked, _, given)] = service.requests
    assert asked == "/pull_request/check-run"
    assert given == {
        "repository_name": "octo-org/demo",
        "source_repository_name": fork or "",
        "target_branch_name": "main",
        "source_branch_name": "fix",
        "commit_sha": "c0ffee",
    }


def test_comment_is_checked_by_its_repository(shell: Shell, service: PolicyService) -> None:
    """GitHub's event of a comment does not say which commit of the pull request it is about."""
    event_file = shell.folder / "event.json"
    event_file.write_text(
        json.dumps({"issue": {"pull_request": {"url": "https://api.example/pulls/1"}}, "comment": {}})
    )

    ask(shell, service.url, GITHUB_EVENT_NAME="issue_comment", GITHUB_EVENT_PATH=str(event_file))

    assert [(asked, given) for asked, _, given in service.requests] == [
        ("/default/check-run", {"repository_name": "octo-org/demo"})
    ]


MEMBER, OUTSIDER = {"author_association": "MEMBER"}, {"author_association": "CONTRIBUTOR"}
TRUSTED, OTHERS = ("OWNER", "MEMBER", "COLLABORATOR"), ("CONTRIBUTOR", "FIRST_TIMER", "MANNEQUIN", "NONE", "", None, 7)
# The event, its payload, and whether its job may run without the option's default.
AUTHORS: list[tuple[str, object, bool]] = [
    *(("pull_request", {"pull_request": {"author_association": trusted}}, True) for trusted in TRUSTED),
    *(("pull_request", {"pull_request": {"author_association": other}}, False) for other in (*OTHERS, "FIRST_TIME_X")),
    ("pull_request", {"pull_request": {"author_association": "owner"}}, False),
    ("pull_request", {"pull_request": {"author_association": ["OWNER"]}}, False),
    ("pull_request", {"pull_request": {}}, False),
    ("pull_request", {"pull_request": "OWNER"}, False),
    ("pull_request", {}, False),
    ("pull_request", [], False),
    ("pull_request", None, False),
    ("pull_request_target", {"pull_request": MEMBER}, True),
    ("pull_request_target", {"pull_request": OUTSIDER}, False),
    ("pull_request_review", {"review": MEMBER, "pull_request": MEMBER}, True),
    ("pull_request_review", {"review": MEMBER, "pull_request": OUTSIDER}, False),
    ("pull_request_review", {"review": OUTSIDER, "pull_request": MEMBER}, False),
    ("pull_request_review", {"review": MEMBER}, True),
    ("pull_request_review", {"review": MEMBER, "pull_request": {}}, False),
    ("pull_request_review", {"pull_request": MEMBER}, False),
    ("pull_request_review_comment", {"comment": MEMBER, "pull_request": MEMBER}, True),
    ("pull_request_review_comment", {"comment": MEMBER, "pull_request": OUTSIDER}, False),
    ("pull_request_review_comment", {"comment": OUTSIDER, "pull_request": MEMBER}, False),
    ("pull_request_review_comment", {"pull_request": MEMBER}, False),
    ("issue_comment", {"comment": MEMBER, "issue": {**MEMBER, "pull_request": {}}}, True),
    ("issue_comment", {"comment": MEMBER, "issue": {**OUTSIDER, "pull_request": {}}}, False),
    ("issue_comment", {"comment": MEMBER, "issue": {"pull_request": {}}}, False),
    ("issue_comment", {"comment": OUTSIDER, "issue": {**MEMBER, "pull_request": {}}}, False),
    ("issue_comment", {"comment": MEMBER, "issue": OUTSIDER}, True),
    ("issue_comment", {"comment": OUTSIDER, "issue": MEMBER}, False),
    ("issue_comment", {"issue": MEMBER}, False),
    ("issue_comment", {"comment": MEMBER, "pull_request": OUTSIDER}, False),
    *((event, OUTSIDER, True) for event in ("push", "workflow_dispatch", "schedule", "merge_group", "issues")),
    ("push", None, True),
]


@pytest.mark.parametrize(("event", "payload", "runs"), AUTHORS, ids=lambda value: json.dumps(value)[:60])
def test_outside_contributors(shell: Shell, event: str, payload: object, runs: bool) -> None:
    """With allow-external-contributor=false everybody who wrote a part of the event must belong to the repository."""
    shell.stub("sleep", '[ "$1" != infinity ] || kill -KILL $PPID')
    event_file = shell.folder / "event.json"
    if payload is not None:
        event_file.write_text(json.dumps(payload))
    script = shell.render("pre-job.sh.j2", external_contributors=False)

    done = shell.run(script, **{**JOB, "GITHUB_EVENT_NAME": event, "GITHUB_EVENT_PATH": str(event_file)})

    assert done.returncode == (0 if runs else -signal.SIGKILL)
    assert ("Outside contributors may not run jobs here" in done.stdout) is not runs
    if not runs:
        assert shell.post_job.status is PostJobStatus.REPO_POLICY_CHECK_FAILURE
        assert shell.arguments("pkill")[:3] == ["-INT", "-x", "Runner.Listener"]


def test_outside_contributor_does_not_reach_the_policy_service(shell: Shell, service: PolicyService) -> None:
    """With both checks the one-time token is not used for a job that is already refused."""
    shell.stub("sleep", '[ "$1" != infinity ] || kill -KILL $PPID')
    script = shell.render("pre-job.sh.j2", external_contributors=False, policy_url=service.url)

    shell.run(script, **{**JOB, "GITHUB_EVENT_NAME": "pull_request", "GITHUB_EVENT_PATH": "/nowhere"})

    assert service.requests == []


def test_one_time_token_is_used_once(shell: Shell, service: PolicyService) -> None:
    """The token's file is gone before the job begins, and no process list shows the token."""
    done = ask(shell, service.url)

    assert not (shell.folder / "policy-token").exists()
    assert "one-time-token" not in " ".join(shell.arguments("curl"))
    assert "one-time-token" not in done.stdout + done.stderr


def test_the_policy_check_has_a_time_limit(shell: Shell, service: PolicyService) -> None:
    """The check is limited to 60 seconds."""
    ask(shell, service.url)
    arguments = shell.arguments("curl")

    assert arguments[arguments.index("--max-time") + 1] == "60"


@pytest.mark.parametrize("status", [200, 204])
def test_allowed_job_runs(shell: Shell, service: PolicyService, status: int) -> None:
    """An allowed job runs: nothing is stopped and no post-job metrics are written yet."""
    service.status = status

    assert ask(shell, service.url).returncode == 0
    assert shell.arguments("sudo") == shell.arguments("pkill") == []
    assert not (shell.metrics / POST_JOB_METRICS_FILE_NAME).exists()
    assert shell.pre_job.workflow_run_id == "4711"


def assert_refused(shell: Shell, done: "subprocess.CompletedProcess[str]", code: int) -> None:
    assert done.returncode == -signal.SIGKILL, "it ends only when it is killed"
    assert shell.post_job.status is PostJobStatus.REPO_POLICY_CHECK_FAILURE
    assert shell.post_job.status_info is not None
    assert shell.post_job.status_info.code == code
    assert shell.arguments("pkill") == ["-INT", "-x", "Runner.Listener", "-KILL", "-x", "Runner.Worker"]
    assert shell.arguments("sleep") == ["1", "20", "10", "infinity"]
    assert shell.arguments("sudo") == POWER_OFF


def test_refused_job_does_not_run(shell: Shell, service: PolicyService) -> None:
    """A refusal is shown with its reason, noted with its code, and ends runner and instance."""
    service.status, service.words = 403, b"Branch protection is missing. $(touch canary)"

    done = ask(shell, service.url)

    assert "Branch protection is missing. $(touch canary)" in done.stdout
    assert_refused(shell, done, 403)
    assert not (shell.folder / "canary").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_no_signal_ends_the_policy_check(shell: Shell, service: PolicyService, number: int) -> None:
    """A signal during the check ends neither the script nor curl: the end of the script would let steps begin."""
    curl = shutil.which("curl")
    service.status = 403
    shell.stub("sleep", '[ "$1" != infinity ] || kill -KILL $PPID')
    shell.stub("curl", f'kill -{number} $$ $PPID\nexec {curl} "$@"')
    (shell.folder / "policy-token").write_text("one-time-token")

    done = shell.run(shell.render("pre-job.sh.j2", policy_url=service.url), **JOB)

    assert_refused(shell, done, 403)


@pytest.mark.parametrize("status", [500, 503])
def test_failing_policy_service_is_told_apart(shell: Shell, service: PolicyService, status: int) -> None:
    """A service that fails is not reported as a refusal, and the job does not run."""
    service.status = status

    done = ask(shell, service.url)

    assert f"failed with HTTP {status}" in done.stdout
    assert "check has failed" not in done.stdout
    assert_refused(shell, done, status)


def test_unreachable_policy_service(shell: Shell) -> None:
    """A service that cannot be reached lets no job through, and the job's log says so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

    done = ask(shell, url)

    assert "could not be reached" in done.stdout
    assert_refused(shell, done, 0)


@pytest.mark.parametrize("value", ["a b", "a'b", "a$(touch canary)b", "a`touch canary`b", "a;touch canary"])
def test_hostile_policy_url_runs_nothing(shell: Shell, value: str) -> None:
    """The service's address runs nothing."""
    ask(shell, f"http://127.0.0.1:9/{value}")

    assert shell.arguments("curl")[-1] == f"http://127.0.0.1:9/{value}/push/check-run"
    assert not (shell.folder / "canary").exists()
