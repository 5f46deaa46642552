"""What the unit's agent needs in demand mode: one JSON file below /run, which each reconcile writes anew.

It has a token: with a GitHub App that of its installation, which is valid for an hour, and nothing of the App's key.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redaction
from gh.registration import complete
from models import CharmState, GithubOrg, GithubPath, parse_github_path
from naming import Identity
from system import LOCKS, remove_files, remove_leftovers, write_file


@dataclass(frozen=True)
class AgentFlavor:
    """A flavour's runner scale set: its labels, and the limits of its number of runners."""

    name: str
    labels: tuple[str, ...]
    maximum: int
    min_idle: int
    capacity: int
    """How many runners the unit could have now, from 1 to the maximum. GitHub assigns no more jobs than that."""


@dataclass(frozen=True)
class AgentSettings:
    """Whose runners, where, and with which token. ``token_end`` is UNIX seconds; None for one without a known end."""

    identity: Identity
    github_url: str
    path: GithubPath
    token: str = field(repr=False)
    token_end: float | None
    ca_certificates: tuple[str, ...]
    proxies: dict[str, str] = field(repr=False)
    """The environment variables of the unit's proxies."""
    flavors: tuple[AgentFlavor, ...]
    measures_jobs: bool = False
    """Whether the agent records the durations of jobs. With the relation cos-agent reconciles record them."""

    @property
    def place(self) -> tuple[str, str]:
        """Where the scale sets are: server, and repository or organisation. GitHub ignores upper and lower case."""
        return place(self.github_url, self.path)

    def __post_init__(self) -> None:
        """Mask the token and the proxies' passwords."""
        redaction.note_received(self.token)
        for url in self.proxies.values():
            redaction.note_url(url)


def of_state(
    state: CharmState, identity: Identity, token: str, token_end: float | None, capacities: Mapping[str, int]
) -> AgentSettings:
    """What the agent needs of a unit's state. A scale set has the labels of the runners of its flavour.

    ``capacities`` is what fits on the machine, by flavour; where that is not known, the maximum counts.
    """
    flavors = tuple(
        AgentFlavor(
            flavor.name,
            tuple(complete(identity.labels(spec), spec.arch)),
            flavor.maximum,
            flavor.min_idle,
            max(1, min(flavor.maximum, capacities.get(flavor.name, flavor.maximum))),
        )
        for flavor, spec in zip(state.flavors, state.runners, strict=True)
    )
    proxies = state.proxies.environment("localhost", "127.0.0.1")
    return AgentSettings(
        identity,
        state.github_url,
        state.path,
        token,
        token_end,
        state.ca_certificates,
        proxies,
        flavors,
        not state.issue_metrics,
    )


def place(github_url: str, where: GithubPath) -> tuple[str, str]:
    """``AgentSettings.place`` of options."""
    return github_url.rstrip("/").lower(), where.path.lower()


def file_of(unit: str) -> Path:
    """The file of a unit such as ``github-runner/0``."""
    return LOCKS / f"agent.{unit.replace('/', '-')}.json"


def save(found: AgentSettings) -> None:
    """Write the settings, whole or not at all; only root can read them. OSError where that is not possible."""
    document = asdict(found)
    document["path"] = {"path": found.path.path, "group": getattr(found.path, "group", "default")}
    # Only hooks write it, and Juju runs one at a time. What a killed one left has a token, too.
    remove_leftovers(file_of(found.identity.unit))
    write_file(file_of(found.identity.unit), json.dumps(document, indent=1), 0o600)


def load(unit: str) -> AgentSettings | None:
    """The settings of a unit; None where the file is missing or damaged."""
    try:
        return _settings(json.loads(file_of(unit).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _settings(found: Any) -> AgentSettings:
    end = found["token_end"]
    if end is not None and not math.isfinite(float(end)):
        raise ValueError("a time that cannot be")
    where = parse_github_path(str(found["path"]["path"]))
    return AgentSettings(
        Identity(**found["identity"]),
        str(found["github_url"]),
        GithubOrg(where.path, str(found["path"]["group"])) if isinstance(where, GithubOrg) else where,
        str(found["token"]),
        None if end is None else float(end),
        tuple(map(str, found["ca_certificates"])),
        {str(name): str(value) for name, value in found["proxies"].items()},
        tuple(map(_flavor, found["flavors"])),
        bool(found["measures_jobs"]),
    )


def _flavor(item: Any) -> AgentFlavor:
    maximum, min_idle, capacity = (int(item[name]) for name in ("maximum", "min_idle", "capacity"))
    return AgentFlavor(str(item["name"]), tuple(map(str, item["labels"])), maximum, min_idle, capacity)


def remove(unit: str) -> list[str]:
    """Remove the file of a unit, and what a write that was killed has left of it; returns what was removed."""
    return [*remove_files(file_of(unit)), *remove_leftovers(file_of(unit))]
