"""How a runner registers at GitHub: with a token that ``config.sh`` uses in the instance, or just in time.

https://docs.github.com/en/rest/actions/self-hosted-runners
"""

import base64
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import redaction
from errors import ConfigurationError, GithubApiError, GithubClientError, RateLimitError
from gh.client import GithubClient
from gh.errors import StatusError
from models import Arch, GithubPath, GithubRunner, RegistrationData, RegistrationMethod

logger = logging.getLogger(__name__)

# What config.sh adds by itself (https://docs.github.com/en/actions/how-tos/manage-runners/self-hosted-runners/apply-labels).
LABELS = {Arch.X64: ("self-hosted", "Linux", "X64"), Arch.ARM64: ("self-hosted", "Linux", "ARM64")}
# Limits of a just-in-time configuration: bytes of all of it, and the number of its files. GitHub's have about 4 KiB and
# three files.
SIZE_LIMIT, MOST_FILES = 64 << 10, 16
FILE_NAME = re.compile(r"\.[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
# Files of a runner agent that the charm writes itself.
RESERVED = frozenset({".env", ".path", ".policy-token", ".register.sh"})
REQUIRED = frozenset({".runner", ".credentials"})
# The files whose form is known: texts. Of another one any bytes are kept, as Python has them in a text.
TEXTS = REQUIRED | {".credentials_rsaparams"}
BYTES = "surrogateescape"


class Registration(Protocol):
    """One way to register runners of one path."""

    def prepare(self) -> None:
        """Get what all runners share. TokenError or ConfigurationError says why none can be registered."""

    def register(self, name: str, labels: Sequence[str]) -> RegistrationData:
        """What registers one runner; ``labels`` does not contain those that GitHub adds by itself."""

    def check(self) -> None:
        """Raise ConfigurationError if the server has no such registration. It asks the server at most once."""
        return

    @property
    def shared(self) -> object:
        """What ``prepare`` and ``check`` use. One call of each is enough for all registrations that share it."""
        return self


class TokenRegistration(Registration):
    """One registration token for all runners of a reconcile. Each runs ``config.sh``, and has no id before that."""

    def __init__(self, client: GithubClient, path: GithubPath) -> None:
        self._client = client
        self._path = path

    @cached_property
    def _token(self) -> str:
        return self._client.registration_token(self._path)

    def prepare(self) -> None:
        """Look for the runner group, and get the token."""
        self._client.check_group(self._path)
        _ = self._token

    def register(self, name: str, labels: Sequence[str]) -> RegistrationData:
        """The token; ``config.sh`` gets name and labels as arguments."""
        return RegistrationData(token=self._token)


class JitRegistration(Registration):
    """A record at GitHub for each runner before its instance exists, and the files that ``config.sh`` would write.

    Nothing in an instance can register another runner. A record whose instance is never made stays offline, and the
    next reconcile removes it.
    """

    def __init__(self, client: GithubClient, path: GithubPath, arch: Arch) -> None:
        self._client = client
        self._path = path
        self._arch = arch

    @cached_property
    def _group(self) -> int:
        return self._client.group_id(self._path)

    def prepare(self) -> None:
        """Look up the runner group, and test the permission: a registration token needs the same one."""
        _ = self._group
        self._client.registration_token(self._path)

    def register(self, name: str, labels: Sequence[str]) -> RegistrationData:
        """Make the record, and check the configuration that GitHub gives with it.

        After an error the record is deleted, if there may be one; where that fails, the next reconcile deletes it.
        """
        try:
            runner, encoded = self._generate_once_more(name, labels)
            return RegistrationData(files=read_configuration(encoded), runner_id=runner.runner_id)
        except GithubApiError as error:
            # A refusal makes no record, and an answer that was lost or is not complete may have.
            if not isinstance(error, (StatusError, RateLimitError)):
                with remaining(name):
                    self._removed(name)
            raise

    def _generate_once_more(self, name: str, labels: Sequence[str]) -> tuple[GithubRunner, str]:
        """Also where the name is taken by the record of an earlier attempt."""
        try:
            return self._generate(name, labels)
        except StatusError as error:
            if error.status != 409 or not self._removed(name):
                raise
            return self._generate(name, labels)

    def _generate(self, name: str, labels: Sequence[str]) -> tuple[GithubRunner, str]:
        return self._client.generate_jit_config(self._path, name, self._group, complete(labels, self._arch))

    def _removed(self, name: str) -> bool:
        """Whether the name is free again.

        Names are random: one that is taken was registered by an earlier attempt of this request, whose answer was lost.
        """
        runner = self._client.find_runner(self._path, name)
        if runner is not None and not (runner.online or runner.busy):
            self._client.delete_runner(self._path, runner.runner_id)
            return True
        return runner is None


@contextmanager
def remaining(name: str) -> Iterator[None]:
    """Log the reason if a record cannot be removed now. Without an instance, the next reconcile removes it."""
    try:
        yield
    except GithubClientError as error:
        logger.warning("%s may still be registered, the next reconcile deregisters it: %s", name, error)


class OptionRegistration(Registration):
    """The way that the option ``registration`` asks for.

    It is chosen when the first runner is registered: an Enterprise Server tells its version with its answers.
    """

    def __init__(self, method: RegistrationMethod, client: GithubClient, path: GithubPath, arch: Arch) -> None:
        self._method = method
        self._client = client
        self._path = path
        self._arch = arch

    @cached_property
    def _chosen(self) -> Registration:
        if self._method is RegistrationMethod.TOKEN:
            return TokenRegistration(self._client, self._path)
        if self._client.has_jit(self._path):
            return JitRegistration(self._client, self._path, self._arch)
        if self._method is RegistrationMethod.JIT:
            version = self._client.server_version or "unknown"
            raise ConfigurationError(
                "registration: jit needs GitHub Enterprise Server 3.10 or newer, and the server's version is "
                f"{version}; use auto or token"
            )
        return TokenRegistration(self._client, self._path)

    def prepare(self) -> None:
        """Choose, and get what all runners share."""
        self._chosen.prepare()

    def register(self, name: str, labels: Sequence[str]) -> RegistrationData:
        """Register in the chosen way."""
        return self._chosen.register(name, labels)

    def check(self) -> None:
        """Choose, if the option leaves no choice."""
        if self._method is RegistrationMethod.JIT:
            _ = self._chosen


def complete(labels: Sequence[str], arch: Arch) -> list[str]:
    """All labels of a runner, each once; GitHub does not distinguish upper and lower case."""
    wanted: dict[str, str] = {}
    for label in (*LABELS[arch], *labels):
        wanted.setdefault(label.lower(), label)
    return list(wanted.values())


def read_configuration(encoded: str) -> dict[str, str]:
    """Text by file name of a just-in-time configuration: base64 of a JSON object of base64 texts.

    Bytes that are no text are surrogates (PEP 383): the runner agent may come to know files that the charm does not.

    https://github.com/actions/runner/blob/main/src/Runner.Listener/Runner.cs
    """
    redaction.note_received(encoded)
    try:
        if len(encoded) > SIZE_LIMIT:
            raise ValueError(f"it is larger than {SIZE_LIMIT} bytes")
        content = json.loads(base64.b64decode(encoded, validate=True))
        if not isinstance(content, dict) or len(content) > MOST_FILES:
            raise ValueError(f"it is not an object of at most {MOST_FILES} files")
        bad = [name for name in content if not FILE_NAME.fullmatch(name) or name in RESERVED]
        if bad or not content.keys() >= REQUIRED:
            raise ValueError(f"it has the files {', '.join(sorted(content))[:100]!r}")
        found = {name: base64.b64decode(text, validate=True) for name, text in content.items()}
        files = {name: data.decode(errors="strict" if name in TEXTS else BYTES) for name, data in found.items()}
    except (ValueError, TypeError, RecursionError) as error:
        raise GithubApiError(f"the just-in-time configuration is not valid: {error}") from None
    # Only texts: other bytes cannot appear in a log line.
    redaction.note_received(
        *(files[name] for name, data in found.items() if data.decode(errors="ignore") == files[name])
    )
    return files
