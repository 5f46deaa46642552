"""What of the LXD adapter needs a fault that no real daemon can be made to show here."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import lxd
from errors import LxdError
from lxd import Execution, LxdClient, LxdInstance

DATA = {"name": "app-0-aa", "status": "Running", "type": "virtual-machine", "config": {}}


class BootingInstance(LxdInstance):
    """A virtual machine that answers its first commands with what is given."""

    def __init__(self, answers: Sequence[Execution | LxdError]) -> None:
        super().__init__(LxdClient(), DATA)
        self.answers: Iterator[Execution | LxdError] = iter(answers)

    def execute(self, command: Sequence[str], **_: Any) -> Execution:
        answer = next(self.answers)
        if isinstance(answer, LxdError):
            raise answer
        return answer


def test_an_agent_that_does_not_run_yet_is_waited_for() -> None:
    """LXD refuses commands until a virtual machine's agent runs, which is no failure of its creation."""
    instance = BootingInstance([LxdError("the agent does not run"), Execution(1), Execution(0), Execution(0)])

    instance.wait_ready()

    assert len(list(instance.answers)) == 1


def test_an_instance_that_never_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait has an end, and its error names the instance."""
    monkeypatch.setattr(lxd, "READY_TIMEOUT", {True: 0, False: 0})
    instance = BootingInstance([LxdError("the agent does not run")] * 9)

    with pytest.raises(LxdError, match="app-0-aa"):
        instance.wait_ready()
