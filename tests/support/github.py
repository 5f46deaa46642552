"""What tests of the client and of the stand-in for GitHub share; requests without any client library."""

import json
import urllib.error
import urllib.request
from email.message import Message
from typing import Any

from models import GithubOrg, GithubRepo
from sandbox import github

TOKEN = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
REPO = GithubRepo("octo-org", "demo")
ORG = GithubOrg("octo-org")


def call(
    server: github.GitHub, method: str, path: str, credential: str | None = None, body: object = None
) -> tuple[int, Any, Message]:
    """Send one request; status, document and headers of the answer."""
    headers = {"User-Agent": "test", **({"Authorization": f"Bearer {credential}"} if credential else {})}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.api_url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.loads(answer.read() or b"null"), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), error.headers
