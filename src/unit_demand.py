"""What a unit's hooks do for demand: read it, hand the credentials to the agent, delete scale sets that are over."""

import logging
from collections.abc import Callable, Mapping
from functools import cached_property

import agent_settings
import demand
import scaling
from errors import GithubRunnerError
from gh.client import GithubClient
from gh.registration import Registration
from gh.scale_set_registration import ScaleSetRegistration
from gh.scale_sets import ScaleSetClient
from host import agent, kernel
from host.markers import SCALE_SETS, Markers
from models import CharmState, Scaling
from naming import Identity
from runner_manager import Wanted

logger = logging.getLogger(__name__)


class UnitDemand:
    """The demand of one unit during one hook. In fixed mode it does nothing but end what was there."""

    def __init__(
        self,
        state: CharmState,
        identity: Identity,
        markers: Markers,
        connect: Callable[[CharmState, GithubClient], ScaleSetClient],
        github: Callable[[], GithubClient],
    ) -> None:
        self._state = state
        self._identity = identity
        self._markers = markers
        self._connect = connect
        self._github = github

    def wanted(self, now: float) -> list[Wanted]:
        """What a reconcile aims for; ``now`` in UNIX seconds."""
        if not self._in_demand:
            agent_settings.remove(self._identity.unit)
            self.leave()
        else:
            self._note_begin(now)
        return scaling.wanted(self._state, self._found(), self._since(now), now, self._registration)

    def hand_over(self, capacities: Mapping[str, int]) -> None:
        """Give the agent what it needs, a token among it. A failure is logged: the next reconcile tries again.

        ``capacities`` is how many runners there could be now, by flavour; empty where that is not known.
        """
        if not self._in_demand:
            return
        try:
            token, end = self._github().held_token()
            handed = agent_settings.load(self._identity.unit)
            known = capacities or {each.name: each.capacity for each in (handed.flavors if handed else ())}
            agent_settings.save(agent_settings.of_state(self._state, self._identity, token, end, known))
        except (GithubRunnerError, OSError) as error:
            logger.warning("The agent gets no new credentials: %s", error)

    def notices(self, now: float) -> list[str]:
        """What the status says of demand."""
        name = self._identity.scale_set
        return list(scaling.notices(self._state, self._found(), self._since(now), now, name))

    def leave(self) -> None:
        """Delete this unit's scale sets, where there may be any. A failure is logged, and tried again later."""
        if self._markers.read(SCALE_SETS) is None:
            return
        try:
            # An open session would make its set again. Without the agent's settings a new agent opens none.
            agent.end_sessions(self._identity.unit)
            for name in self._client.delete_sets(self._identity.owns_scale_set):
                logger.info("Removed: the scale set %s", name)
            demand.remove(self._identity.unit)
            self._markers.clear(SCALE_SETS)
        except (GithubRunnerError, OSError) as error:
            logger.error("The scale sets were not removed: %s", error)

    @property
    def _in_demand(self) -> bool:
        return self._state.scaling is Scaling.DEMAND

    def _note_begin(self, now: float) -> None:
        """Record since when demand decides: anew after a boot, and where there are other flavours.

        What the agent has not heard yet then is given time, and the fallback does not begin at once.
        """
        about = " ".join([kernel.boot_id(), *(flavor.name for flavor in self._state.flavors)])
        noted = (self._markers.read(SCALE_SETS) or "").partition(" ")
        if noted[2].strip() != about or self._markers.numbers(SCALE_SETS, 1) is None:
            self._markers.note(SCALE_SETS, f"{now:.0f} {about}")

    def _since(self, now: float) -> float:
        found = self._markers.numbers(SCALE_SETS, 1)
        return found[0] if found else now

    def _registration(self, number: int) -> Registration:
        return ScaleSetRegistration(self._client, number)

    def _found(self) -> dict[str, demand.Demand]:
        """What the agent has heard. Nothing where it was handed another place: the numbers of sets are others there."""
        handed = agent_settings.load(self._identity.unit) if self._in_demand else None
        if handed is None or (handed.github_url, handed.path) != (self._state.github_url, self._state.path):
            return {}
        return demand.load(self._identity.unit)

    @cached_property
    def _client(self) -> ScaleSetClient:
        return self._connect(self._state, self._github())
