"""The client of the control interface of the stand-in for GitHub."""

import json
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

# What an App needs to manage the runners of repositories and organisations, and to look up their jobs.
RUNNERS = {"administration": "write", "organization_self_hosted_runners": "write", "actions": "read"}


class GitHubControlError(Exception):
    """The control interface refused; the text is its reason."""


class GitHubControl:
    """One method for each call of the control interface of the server at `url`; `ca` is its authority's certificate."""

    def __init__(self, url: str, timeout: float = 30.0, ca: str | None = None) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        # A proxy that the environment names is for the machines under test, not for us.
        self._opener = build_opener(ProxyHandler({}))
        if ca:
            self._opener = build_opener(ProxyHandler({}), HTTPSHandler(context=ssl.create_default_context(cadata=ca)))

    def _call(self, method: str, path: str, body: object = None, timeout: float = 0.0):  # type: ignore[no-untyped-def]
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}/_control/{path}", data, {"Content-Type": "application/json"}, method=method)
        try:
            with self._opener.open(request, timeout=self.timeout + timeout) as reply:
                text = reply.read()
        except HTTPError as error:
            with error:
                raise GitHubControlError(f"{method} {path}: {error.code} {error.read().decode()}") from None
        return json.loads(text) if text else None

    def requests(self, since: int = 0) -> list[dict[str, Any]]:
        """The recorded requests after number `since`."""
        return self._call("GET", f"requests?since={since}")

    def clear_requests(self) -> None:
        """Delete the recorded requests; their numbers go on."""
        self._call("DELETE", "requests")

    def add_fault(self, **fields: object) -> int:
        """Plant a fault (fields: see faults.Fault) and return its id."""
        return self._call("POST", "faults", fields)["id"]

    def faults(self) -> list[dict[str, Any]]:
        """All faults, with their hits."""
        return self._call("GET", "faults")

    def remove_faults(self, fault: int | None = None) -> None:
        """Take one fault or all away; requests that they hold go on."""
        self._call("DELETE", "faults" if fault is None else f"faults/{fault}")

    def add_job(self, repository: str, command: str = "true", **fields: object):  # type: ignore[no-untyped-def]
        """Queue a job and return its id and run_id; a list of them with `count`."""
        return self._call("POST", "jobs", {"repository": repository, "command": command, **fields})

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs."""
        return self._call("GET", "jobs")

    def job(self, job: int, wait: float | None = None, log_from: int | None = None) -> dict[str, Any]:
        """A job; with `wait`, as soon as its log passes `log_from` lines or its status changes."""
        query = [] if wait is None else [f"wait={wait}"]
        query += [] if log_from is None else [f"log_from={log_from}"]
        return self._call("GET", f"jobs/{job}?{'&'.join(query)}", timeout=wait or 0.0)

    def cancel_job(self, job: int) -> None:
        """Cancel a job."""
        self._call("POST", f"jobs/{job}/cancel")

    def wait_job(self, job: int, status: str = "completed", timeout: float = 60.0) -> dict[str, Any]:
        """Wait until a job has this status (or is over)."""
        return self.wait_log(job, lambda found: found["status"] in (status, "completed"), timeout)

    def wait_log(self, job: int, condition: Callable[[dict[str, Any]], bool], timeout: float = 60.0) -> dict[str, Any]:
        """Wait until the job satisfies a condition, looking at each change of its log or status."""
        deadline = time.monotonic() + timeout
        found = self.job(job)
        while not condition(found):
            left = deadline - time.monotonic()
            if left <= 0:
                raise GitHubControlError(f"job {job} is still not as awaited after {timeout:.0f} s: {found}")
            found = self.job(job, wait=min(left, 1.0), log_from=len(found["log"]))
        return found

    def refuse_sessions(self, times: int | None = None) -> int:
        """Refuse runners' sessions as for a clock that is wrong, so many times or for ever; the fault's id."""
        body = json.dumps({"message": "The runner registration has been deleted from the server.", "code": "deleted"})
        return self.add_fault(path="/sessions$", times=times, status=401, body=body)

    def runners(self) -> list[dict[str, Any]]:
        """The runners of all paths."""
        return self._call("GET", "runners")

    def add_runner(self, path: str, name: str, **fields: object) -> dict[str, Any]:
        """Add a runner that nobody runs (status, busy, labels), or `count` of them: their ids."""
        return self._call("POST", "runners", {"path": path, "name": name, **fields})

    def change_runner(self, runner: int, **fields: object) -> dict[str, Any]:
        """Fix `status` or `busy` of a runner; None lets it follow the runner again."""
        return self._call("PATCH", f"runners/{runner}", fields)

    def remove_runner(self, runner: int) -> None:
        """Deregister a runner, busy or not."""
        self._call("DELETE", f"runners/{runner}")

    def add_token(
        self,
        token: str,
        paths: Sequence[str] = ("*",),
        admin: bool = True,
        sees: Sequence[str] = (),
        sso: Sequence[str] = (),
    ) -> None:
        """Make or change a token; it is not authorized for the single sign-on of the organisations in `sso`."""
        fields = {"token": token, "paths": list(paths), "admin": admin, "sees": list(sees), "sso": list(sso)}
        self._call("POST", "tokens", fields)

    def remove_token(self, token: str) -> None:
        """Revoke a token."""
        self._call("DELETE", f"tokens/{quote(token, safe='')}")

    def rate_limit(self, token: str = "", **fields: object) -> dict[str, Any]:
        """Set `remaining`, `reset_in`, or `retry_after`, `status` and `header` (Retry-After) of a token's limits.

        With `installation` it is that of all tokens of an App's installation. With `path`, `remaining` and `reset_in`
        are about the registrations of runners at a repository or organisation.
        """
        return self._call("POST", "rate-limit", {"token": token, **fields})

    def add_app(
        self, slug: str, owner: str, permissions: dict[str, str] | None = None, private_key: str | None = None
    ) -> dict[str, Any]:
        """Make a GitHub App: its id, client_id, key (the key's number) and private_key (PEM), a new one if not given.

        Its permissions are those that managing runners takes, unless others are named.
        """
        fields = {"slug": slug, "owner": owner, "permissions": RUNNERS if permissions is None else permissions}
        return self._call("POST", "apps", {**fields, "private_key": private_key})

    def add_app_key(self, app: int) -> dict[str, Any]:
        """Make another key of an App: its number as key, and private_key; the others stay active."""
        return self._call("POST", f"apps/{app}/keys", {})

    def remove_app_key(self, app: int, key: int) -> None:
        """Delete one of an App's keys."""
        self._call("DELETE", f"apps/{app}/keys/{key}")

    def install_app(
        self,
        app: int,
        account: str,
        repositories: list[str] | None = None,
        permissions: dict[str, str] | None = None,
    ) -> int:
        """Install an App on an organisation or user and return the installation's id.

        It is for all repositories and has all of the App's permissions, unless some are named.
        """
        fields = {"account": account, "repositories": repositories, "permissions": permissions}
        return self._call("POST", f"apps/{app}/installations", fields)["id"]

    def change_installation(self, installation: int, **fields: object) -> dict[str, Any]:
        """Set `suspended`, `permissions` or `repositories` (None for all) of an installation."""
        return self._call("PATCH", f"installations/{installation}", fields)

    def uninstall_app(self, installation: int) -> None:
        """Remove an installation, and its tokens with it."""
        self._call("DELETE", f"installations/{installation}")

    def installation_tokens(self) -> list[dict[str, Any]]:
        """What the valid tokens of installations may do: installation, permissions, repositories."""
        return self._call("GET", "installation-tokens")

    def revoke_installation_tokens(self) -> None:
        """Let all tokens of installations be over."""
        self._call("DELETE", "installation-tokens")

    def expire_registration_tokens(self) -> None:
        """Let all registration and remove tokens be over."""
        self._call("POST", "registration-tokens/expire")

    def add_repository(self, repository: str) -> None:
        """Make a repository."""
        self._call("POST", "repositories", {"repository": repository})

    def add_action(self, action: str) -> str:
        """Make a commit of a public action (owner/repo@ref), to which the ref points from now on; its name."""
        return self._call("POST", "actions", {"action": action})["commit"]

    def rename_repository(self, old: str, new: str) -> None:
        """Rename or move a repository; requests for the old name are redirected."""
        self._call("POST", "repositories/rename", {"old": old, "new": new})

    def add_organisation(self, organisation: str, runner_groups: Sequence[str] = ()) -> None:
        """Make an organisation, or add runner groups to one."""
        self._call("POST", "organisations", {"organisation": organisation, "runner_groups": list(runner_groups)})

    def scale_sets(self) -> list[dict[str, Any]]:
        """The runner scale sets of all paths, with announced capacity, owner of the session and statistics."""
        return self._call("GET", "scale-sets")

    def remove_scale_set(self, number: int) -> None:
        """Let a runner scale set vanish, as GitHub was seen to do."""
        self._call("DELETE", f"scale-sets/{number}")

    def expire_scale_sets(self, *what: str) -> None:
        """Let all `sessions`, `queue` tokens or `admin` tokens be over."""
        self._call("POST", "scale-sets/expire", {"what": list(what)})

    def runner_binary(self, **fields: object) -> dict[str, Any]:
        """Change the runner binary that is offered (fields: see state.RunnerBinary)."""
        return self._call("PATCH", "application", fields)

    def settings(self, **fields: object) -> dict[str, Any]:
        """Change times and limits (fields: see state.Settings)."""
        return self._call("PATCH", "settings", fields)


def make_app(control: GitHubControl, file: Path, owners: list[str]) -> str:
    """Make a GitHub App that is installed on all owners and write its private key; what there is to know about it."""
    app = control.add_app("runners", owners[0])
    installations = [f"{control.install_app(app['id'], owner)} on {owner}" for owner in owners]
    file.touch(mode=0o600)
    file.write_text(app["private_key"])
    return f"GitHub App {app['id']}, client id {app['client_id']}, installed as {', '.join(installations)}"
