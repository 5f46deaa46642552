"""Public repositories of actions: their refs, commits and archives."""

import gzip
import hashlib
import io
import json
import re
import tarfile

from sandbox.github.errors import RefusedError

# An Enterprise Server has these, and more, from its installation on.
BUNDLED = ("actions/checkout@v5", "actions/cache@v5", "actions/setup-python@v6")
MODIFIED = 1_735_689_600  # one fixed moment, so that equal content gives equal bytes


class ActionRepositories:
    """By name: the commits of each repository, newest last, and what its refs point to."""

    def __init__(self) -> None:
        self._refs: dict[str, dict[str, str]] = {}
        self._commits: dict[str, list[str]] = {}
        for action in BUNDLED:
            self.add(*action.split("@"))

    def add(self, repository: str, ref: str) -> str:
        """Make a commit, and the repository where it is missing; the ref points to the commit from now on."""
        commits = self._commits.setdefault(repository, [])
        commit = hashlib.sha1(f"{repository} {ref} {len(commits)}".encode()).hexdigest()
        commits.append(commit)
        self._refs.setdefault(repository, {})[ref] = commit
        return commit

    def name(self, repository: str) -> str | None:
        """The repository in its own spelling."""
        return next((name for name in self._commits if name.lower() == repository.lower()), None)

    def commit(self, repository: str, ref: str) -> str:
        """What a branch, a tag or a commit's name, also a shortened one, stands for."""
        commits = self._commits[repository]
        found = self._refs[repository].get(re.sub("^(heads|tags)/", "", ref))
        if found is None and re.fullmatch("[0-9a-f]{7,40}", ref):
            found = next((commit for commit in commits if commit.startswith(ref)), None)
        if found is None:
            raise RefusedError(422, f"No commit found for SHA: {ref}")
        return found


def tarball(repository: str, commit: str) -> bytes:
    """An archive as GitHub makes them: one folder, and the commit's name as a comment.

    The action's description is JSON, which is YAML as well: the stand-in for the worker reads no other YAML.
    """
    folder = f"{repository.replace('/', '-')}-{commit[:7]}"
    step = {"run": f"echo {repository} at {commit}", "shell": "bash"}
    action = {"name": repository, "description": "Says what it is", "runs": {"using": "composite", "steps": [step]}}
    content = json.dumps(action).encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": commit}) as archive:
        archive.addfile(_entry(folder, tarfile.DIRTYPE, 0o775))
        archive.addfile(_entry(f"{folder}/action.yml", tarfile.REGTYPE, 0o664, len(content)), io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def _entry(name: str, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.mtime = kind, mode, size, MODIFIED
    entry.uname = entry.gname = "root"
    return entry
