"""A client of runner scale sets, written from what GitHub's own client sends. It shares no code with the charm.

https://github.com/actions/scaleset is the contract. It keeps the stand-in to it.
"""

import base64
import json
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import requests


class ScaleSetError(Exception):
    """A refusal: the HTTP status and the name of the service's exception, if it gave one."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(f"{status} {kind}: {message}")
        self.status, self.kind = status, kind


def _decode(answer: requests.Response) -> Any:
    text = answer.content.decode("utf-8-sig")
    if answer.status_code < 300:
        return json.loads(text) if text else None
    try:
        body = json.loads(text)
    except ValueError:
        body = {}
    kind = str(body.get("typeName", "")).partition(",")[0].rpartition(".")[2]
    raise ScaleSetError(answer.status_code, kind, str(body.get("message", text)))


def _extended(url: str, path: str = "", /, **query: Any) -> str:
    """An address with more path and more query; what it has of both stays."""
    parts = urlsplit(url)
    pairs = [*parse_qsl(parts.query), *query.items()]
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path, query=urlencode(pairs)))


class ScaleSetClient:
    """What one process does for the sets of one repository or organisation (``https://HOST/OWNER[/REPOSITORY]``)."""

    def __init__(self, api: str, config_url: str, token: str) -> None:
        self.api, self.config_url, self.token = api, config_url, token
        self.http = requests.Session()
        self.http.headers["User-Agent"] = json.dumps({"system": "test", "version": "1", "kind": "scaleset"})
        self.connect()

    def connect(self) -> None:
        """From the user's token by way of a registration token to the service's address and token."""
        path = urlsplit(self.config_url).path
        place = f"repos{path}" if path.count("/") == 2 else f"orgs{path}"
        bearer = {"Authorization": f"Bearer {self.token}"}
        made = self.http.post(f"{self.api}/{place}/actions/runners/registration-token", headers=bearer, timeout=10)
        assert made.status_code == 201, made.text
        remote = {"Authorization": f"RemoteAuth {made.json()['token']}"}
        body = {"url": self.config_url, "runner_event": "register"}
        found = self.http.post(f"{self.api}/actions/runner-registration", json=body, headers=remote, timeout=10)
        assert found.status_code == 200, found.text
        self.service, self.admin = found.json()["url"], found.json()["token"]

    @property
    def admin_ends(self) -> int:
        """When the service's token is over, by its own claim."""
        middle = self.admin.split(".")[1]
        return int(json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))["exp"])

    def call(self, method: str, path: str, body: Any = None, bearer: str = "", **query: Any) -> Any:
        """A request of the service."""
        url = _extended(self.service, f"/_apis{path}", **{"api-version": "6.0-preview", **query})
        headers = {"Authorization": f"Bearer {bearer or self.admin}"}
        return _decode(self.http.request(method, url, json=body, headers=headers, timeout=10))

    def create(self, name: str, *labels: str, group: int = 1) -> dict[str, Any]:
        """A set whose labels are its name and these."""
        system = [{"name": label, "type": "System"} for label in (name, *labels)]
        setting = {"disableUpdate": True}
        body = {"name": name, "runnerGroupId": group, "labels": system, "RunnerSetting": setting}
        made: dict[str, Any] = self.call("POST", "/runtime/runnerscalesets", body)
        return made

    def find(self, **query: Any) -> list[dict[str, Any]]:
        """The sets, all of them or those of a ``name`` and ``runnerGroupId``."""
        found = self.call("GET", "/runtime/runnerscalesets", **query)
        assert found["count"] == len(found["value"])
        return list(found["value"])

    def jit(self, set_id: int, name: str) -> dict[str, Any]:
        """A runner's record and its configuration."""
        body = {"name": name, "workFolder": "_work"}
        made: dict[str, Any] = self.call("POST", f"/runtime/runnerscalesets/{set_id}/generatejitconfig", body)
        return made

    def listen(self, set_id: int, owner: str = "test") -> "Listener":
        """Open the set's session."""
        return Listener(
            self, set_id, self.call("POST", f"/runtime/runnerscalesets/{set_id}/sessions", {"ownerName": owner})
        )


class Listener:
    """A session of a set, with the place in its messages."""

    def __init__(self, client: ScaleSetClient, set_id: int, session: dict[str, Any]) -> None:
        self.client, self.set_id = client, set_id
        self.last = 0
        self._take(session)

    def _take(self, session: dict[str, Any]) -> None:
        self.id, self.owner, self.url = session["sessionId"], session["ownerName"], session["messageQueueUrl"]
        self.token, self.statistics = session["messageQueueAccessToken"], session["statistics"]

    def _place(self) -> str:
        return f"/runtime/runnerscalesets/{self.set_id}/sessions/{self.id}"

    def renew(self) -> None:
        """Another token for the queue, and today's statistics."""
        self._take(self.client.call("PATCH", self._place()))

    def close(self) -> None:
        """End the session."""
        self.client.call("DELETE", self._place())

    def message(self, capacity: int) -> dict[str, Any] | None:
        """The next message with its decoded ``entries``, or None after the time that the service waits."""
        query = {"lastMessageId": self.last} if self.last else {}
        headers = {
            "Accept": "application/json; api-version=6.0-preview",
            "Authorization": f"Bearer {self.token}",
            "X-ScaleSetMaxCapacity": str(capacity),
        }
        answer = self.client.http.get(_extended(self.url, **query), headers=headers, timeout=60)
        if answer.status_code == 202:
            assert answer.content == b""
            return None
        found: dict[str, Any] = _decode(answer)
        self.last, self.statistics = found["messageId"], found["statistics"]
        return {**found, "entries": json.loads(found["body"] or "[]")}

    def delete(self, message_id: int) -> None:
        """Delete a message, so that it does not come again."""
        headers = {"Authorization": f"Bearer {self.token}"}
        _decode(self.client.http.delete(_extended(self.url, f"/{message_id}"), headers=headers, timeout=10))

    def acquire(self, *numbers: int) -> list[int]:
        """Take jobs by their request ids; those that are granted."""
        path = f"/runtime/runnerscalesets/{self.set_id}/acquirejobs"
        found = self.client.call("POST", path, list(numbers), bearer=self.token)
        return list(found["value"])

    def acquirable(self) -> list[int]:
        """The request ids of jobs that are offered; the answer is empty where there are none."""
        found = self.client.call("GET", f"/runtime/runnerscalesets/{self.set_id}/acquirablejobs")
        return [each["runnerRequestId"] for each in found["value"]] if found else []
