"""What the simulations of units share: a GitHub with late lists, exit codes of the health probe, other runners."""

import itertools
from collections.abc import Callable, Sequence

import provision
from gh.registration import Registration
from models import GithubPath, GithubRunner, RegistrationData
from naming import KEY
from tests.support.fakes import TEMPLATES, FakeGithub

JINJA = provision.environment(TEMPLATES)
WORKER, RUNNING, NONE = 0, 10, 11
OTHERS = ("app-00-0123abcdaa", "app-0-99999999aaaaaaaaaaaaaaaa", "other-0-0123abcdaa")
# What this charm notes on every instance that it creates: without it the second one would be the previous charm's.
OTHERS_KEYS = {f"{KEY}created": "1600000000.0"}


class Killed(BaseException):
    """The charm's process is killed: nothing of it may catch this."""


class Hub(FakeGithub):
    """GitHub, whose list may be late, short or empty, and which deregisters a runner with its job."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: list[GithubRunner] | None = None
        self.ids = itertools.count(1)

    def register(self, name: str, *, online: bool = True, busy: bool = False) -> GithubRunner:
        self.runners[name] = GithubRunner(next(self.ids), name, online, busy)
        return self.runners[name]

    def list_runners(self, path: GithubPath, wanted: Callable[[str], bool]) -> list[GithubRunner]:
        found = super().list_runners(path, wanted)
        return found if self.answer is None else [item for item in self.answer if wanted(item.name)]


class Records(Registration):
    """Just-in-time registration: a record at GitHub for each runner, before its instance; ``fault`` may come first."""

    def __init__(self, hub: Hub, fault: Callable[[str], object]) -> None:
        self._hub, self._fault = hub, fault

    def prepare(self) -> None:
        pass

    def check(self) -> None:
        pass

    def register(self, name: str, labels: Sequence[str]) -> RegistrationData:
        self._fault(name)
        record = self._hub.register(name, online=False)
        return RegistrationData(files={".runner": '{"Ephemeral": "True"}'}, runner_id=record.runner_id)
