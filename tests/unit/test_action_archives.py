"""How archives of actions come into the image that is being built."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, BinaryIO, cast

import pytest

from engine.instance import Execution, LxdInstance
from errors import GithubApiError, LxdError
from host import action_archives
from tests.unit.test_image import BUILD

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDER = "/opt/github-runner-actions"
CHECKOUT, CACHE = "actions/checkout@v5", "actions/cache@v5"


class Archives:
    """Archives of a size by action; others are not available."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = {f"actions/{name}@v5": size for name, size in sizes.items()}
        self.limits: list[int] = []

    def fetch(self, action: str, file: BinaryIO, limit: int) -> str:
        self.limits.append(limit)
        if action not in self.sizes:
            raise GithubApiError("api.github.com: HTTP 404 at http://user:word@proxy.example:3128")
        if self.sizes[action] > limit:
            raise GithubApiError(f"larger than {limit} bytes")
        # A hole: only its length counts.
        file.truncate(self.sizes[action])
        return COMMIT


class Builder:
    """Files by path; each archive is whole unless the builder is told otherwise."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.files, self.folders = fails, dict[str, tuple[int, int, int]](), set[str]()
        self.synced = set[str]()

    def push(self, path: str, content: BinaryIO, *, mode: int = 0o644, user: int = 0) -> None:
        assert path.rpartition("/")[0] in self.folders
        assert content.tell() == 0
        self.files[path] = (content.seek(0, 2), mode, user)
        if self.fails == "push":
            raise LxdError("no space left on device")

    def execute(self, command: Sequence[str], **options: Any) -> Execution:
        if self.fails == command[0]:
            return Execution(2, "", "tar: Unexpected EOF in archive")
        if command[0] == "mkdir":
            self.folders.add(command[-1])
        elif command[0] == "rm":
            self.files.pop(command[-1], None)
        elif command[0] == "sync":
            self.synced = set(self.files)
        else:
            assert command[:-2] == action_archives.CHECK_COMMAND
            self.files[command[-1]] = self.files.pop(command[-2])
        return Execution(0)


def add(builder: Builder, archives: Archives, *actions: str) -> None:
    build = replace(BUILD, cached_actions=actions)
    action_archives.add(cast(LxdInstance, builder), build, archives)


def test_archives_lie_where_the_agent_looks(caplog: pytest.LogCaptureFixture) -> None:
    """Each is named after its commit in its repository's folder, is root's, and everybody can read it."""
    caplog.set_level(logging.INFO)
    builder = Builder()

    add(builder, Archives(checkout=5, cache=7), CHECKOUT, CACHE)

    assert builder.files == {
        f"{FOLDER}/actions_checkout/{COMMIT}.tar.gz": (5, 0o644, 0),
        f"{FOLDER}/actions_cache/{COMMIT}.tar.gz": (7, 0o644, 0),
    }
    assert f"Image jammy: {CHECKOUT} is {COMMIT}, an archive of 5 bytes" in caplog.messages


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        ("push", "no space left on device"),
        ("mkdir", "mkdir in the builder ended with 2: tar: Unexpected EOF in archive"),
        ("bash", "bash in the builder ended with 2: tar: Unexpected EOF in archive"),
        ("rm", "rm in the builder ended with 2: tar: Unexpected EOF in archive"),
    ],
)
def test_an_archive_that_is_not_whole_is_left_out(caplog: pytest.LogCaptureFixture, fails: str, reason: str) -> None:
    """A build goes on without it, and what has come of it is removed."""
    builder = Builder(fails)

    add(builder, Archives(checkout=5), CHECKOUT)

    assert caplog.messages == [f"Image jammy: the archive of {CHECKOUT} is left out: {reason}"]
    assert fails == "rm" or builder.files == {}


def test_one_that_is_not_available_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """The log names it with the reason, without passwords, and the next ones are added."""
    caplog.set_level(logging.WARNING)
    builder = Builder()

    add(builder, Archives(cache=7), "actions/none@v5", CACHE)

    assert list(builder.files) == [f"{FOLDER}/actions_cache/{COMMIT}.tar.gz"]
    [line] = caplog.messages
    assert line.startswith("Image jammy: the archive of actions/none@v5 is left out: api.github.com: HTTP 404 at http")
    assert "word" not in line


def test_archives_are_written_to_the_disk() -> None:
    """The builder is published after them, and its stop may be one by force."""
    builder = Builder()

    add(builder, Archives(checkout=5, cache=7), CHECKOUT, CACHE)

    assert builder.synced == set(builder.files) != set()


def test_archives_that_are_not_synced_cost_no_build(caplog: pytest.LogCaptureFixture) -> None:
    """The log says it."""
    add(Builder("sync"), Archives(checkout=5), CHECKOUT)

    assert "Image jammy: sync in the builder ended with 2" in caplog.text


def test_archives_have_a_size_each_and_a_total(caplog: pytest.LogCaptureFixture) -> None:
    """100 MiB each; once 500 MiB are in the image, what does not fit any more is left out."""
    caplog.set_level(logging.WARNING)
    mib = 1 << 20
    sizes = {f"a{number}": 96 * mib for number in range(6)}
    builder, archives = Builder(), Archives(**sizes, small=mib)

    add(builder, archives, *archives.sizes)

    assert archives.limits == [100 * mib] * 5 + [20 * mib] * 2
    assert len(builder.files) == 6
    assert len(caplog.messages) == 1


def test_without_actions_nothing_is_made() -> None:
    """An image without archives has no folder for them."""
    builder = Builder("mkdir")

    add(builder, Archives())

    assert (builder.files, builder.folders) == ({}, set())
