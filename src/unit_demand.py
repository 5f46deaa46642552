"""What a unit's hooks do for demand: read it, hand the credentials to the agent, delete scale sets that are over."""

import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from functools import cached_property

import agent_settings
import demand
import scaling
import times
from agent_settings import AgentSettings
from errors import GithubRunnerError, HostError, TokenError
from flavor_plans import Wanted
from gh.client import GithubClient
from gh.registration import Registration
from gh.scale_set_registration import ScaleSetRegistration
from gh.scale_sets import ScaleSetClient
from host import agent, kernel
from host.markers import LIST_DUE, LISTED, SCALE_SETS, Markers
from models import CharmState, Scaling
from naming import Identity

logger = logging.getLogger(__name__)

# Of the agent's token, in seconds: what is left when a reconcile gets a new one. More than when the agent asks for it.
RENEW_BEFORE = 900.0


class UnitDemand:
    """The demand of one unit during one hook. In fixed mode it does nothing but end what was there."""

    def __init__(
        self,
        state: CharmState,
        identity: Identity,
        markers: Markers,
        connect: Callable[[CharmState, GithubClient], ScaleSetClient],
        github: Callable[[], GithubClient],
        github_of: Callable[[CharmState], GithubClient],
    ) -> None:
        self._state = state
        self._identity = identity
        self._markers = markers
        self._connect = connect
        self._github = github
        self._github_of = github_of

    def wanted(self, now: float) -> list[Wanted]:
        """What a reconcile aims for; ``now`` in UNIX seconds."""
        if not self._in_demand:
            self.leave(self._former)
        else:
            self._note_begin(now)
        return scaling.wanted(self._state, self._found(), self._since(now), now, self._registration)

    def hand_over(self, capacities: Mapping[str, int]) -> None:
        """Give the agent what it needs, a token among it. A failure is logged: the next reconcile tries again.

        ``capacities`` is how many runners there could be now, by flavour; empty where that is not known.
        """
        if not self._in_demand:
            return
        former: AgentSettings | None = None
        try:
            handed = agent_settings.load(self._identity.unit)
            token, end = self._token(handed)
            known = capacities or {each.name: each.capacity for each in (handed.flavors if handed else ())}
            former = self._former
            if former is not None:
                self._end_former_sessions()
            agent_settings.save(agent_settings.of_state(self._state, self._identity, token, end, known))
        except (GithubRunnerError, OSError) as error:
            logger.warning("The agent gets no new credentials: %s", error)
        if former is not None:
            # Also after an error: its token was removed with the former settings.
            self._delete_sets_at(former)

    def _token(self, handed: AgentSettings | None) -> tuple[str, float | None]:
        """The token that this hook has used, or the agent's own where GitHub was not asked for anything."""
        try:
            return self._github().held_token()
        except TokenError:
            if handed is None or not self._is_of_this_place(handed):
                raise
            return handed.token, handed.token_end

    def take_list_age(self, now: float) -> float | None:
        """How many seconds ago a reconcile read GitHub's list of runners; None where the next one has to read it.

        It has to after five minutes, or ``reconcile-interval``, if the agent needs a new token, and if the agent asks
        for it. The record is removed until ``note_list``: a reconcile that fails or is killed is followed by one that
        reads the list.
        """
        if not self._in_demand:
            return None
        listed = self._markers.numbers(LISTED, 1)
        is_due = self._markers.read(LIST_DUE) is not None
        with suppress(HostError):
            # In this order: one of them stays until a reconcile has read the list. The agent may ask at any moment, and
            # only what was read here is answered by this reconcile.
            self._markers.clear(LISTED, *([LIST_DUE] if is_due else []))
        handed = agent_settings.load(self._identity.unit)
        if is_due or handed is None or (handed.token_end is not None and handed.token_end - now < RENEW_BEFORE):
            return None
        age = now - listed[0] if listed else math.inf
        limit = min(times.LIST_OF_RUNNERS, self._state.reconcile_interval * times.MINUTE)
        return age if 0 <= age < limit else None

    def note_list(self, at: float) -> None:
        """Record when the list was read, in UNIX seconds."""
        if self._in_demand:
            with suppress(HostError):
                self._markers.note(LISTED, str(at))

    def notices(self, now: float) -> list[str]:
        """What the status says of demand."""
        name = self._identity.scale_set
        return list(scaling.notices(self._state, self._found(), self._since(now), now, name))

    def blocked_by(self) -> str:
        """What the operator must fix before GitHub can report demand, as the unit's agent found it; or nothing."""
        return scaling.blocked_by(self._state, self._found())

    def leave(self, handed: AgentSettings | None = None) -> None:
        """Delete this unit's scale sets, where there may be any. A failure is logged, and tried again later.

        ``handed`` is what the agent had. It is used once: where it is for another place than that of the options, or
        where the options do not serve.
        """
        have_ended = self._tried(self._end_open_sessions)
        if handed is not None and handed.place != self._here:
            # First: its token is nowhere else any more, and at the place of the options GitHub may be asked a minute.
            self._delete_sets_at(handed)
            handed = None
        is_left = have_ended and self._tried(self._delete_sets_here)
        if handed is not None and not is_left:
            self._delete_sets_at(handed)

    def revoke(self, handed: AgentSettings | None) -> None:
        """End the token that the agent had, where it is from, whatever the options have. The operator's is left."""
        if handed is not None and handed.token_end is not None:
            with closing(self._github_of(self._state_of(handed))) as github:
                github.revoke([handed.token])

    def _tried(self, action: Callable[[], None]) -> bool:
        """Do a part of ``leave``; returns whether that succeeded."""
        try:
            action()
        except (GithubRunnerError, OSError) as error:
            logger.error("The scale sets were not removed: %s", error)
            return False
        return True

    def _end_open_sessions(self) -> None:
        """Remove what the agent has, and end its sessions where there may be any."""
        unit = self._identity.unit
        # Each restart of the agent starts a reconcile. Without settings and answers it has no session to be ended.
        may_be_open = bool(agent_settings.remove(unit)) or demand.file_of(unit).exists()
        if may_be_open and self._markers.read(SCALE_SETS) is not None:
            self._end_sessions()

    def _delete_sets_here(self) -> None:
        """Delete the scale sets at the place of the options, where there may be any."""
        if self._markers.read(SCALE_SETS) is not None:
            self._delete_sets(self._client)
            self._markers.clear(SCALE_SETS)

    def _end_sessions(self) -> None:
        """End the agent's sessions, and what GitHub answered them. One that is open would make its set again."""
        # Without its settings a new agent opens none.
        agent_settings.remove(self._identity.unit)
        agent.end_sessions(self._identity.unit)
        demand.remove(self._identity.unit)

    def _delete_sets(self, client: ScaleSetClient) -> None:
        client.delete_sets(self._identity.manages_scale_set)

    @property
    def _former(self) -> AgentSettings | None:
        """What the agent was handed for another path or server than that of the options."""
        handed = agent_settings.load(self._identity.unit)
        return handed if handed is not None and handed.place != self._here else None

    @property
    def _here(self) -> tuple[str, str]:
        return agent_settings.place(self._state.github_url, self._state.path)

    def _end_former_sessions(self) -> None:
        try:
            self._end_sessions()
        except (GithubRunnerError, OSError) as error:
            # The agent ends them by itself once it reads the new settings.
            logger.warning("The sessions of the former path were not ended: %s", error)

    def _delete_sets_at(self, former: AgentSettings) -> None:
        """Delete this unit's sets at a former path or server, with the token of then; no other is sent there.

        It is tried once: what cannot be deleted stays, and the log names the place.
        """
        state = self._state_of(former)
        try:
            with closing(self._github_of(state)) as github, closing(self._connect(state, github)) as client:
                self._delete_sets(client)
        except (GithubRunnerError, OSError) as error:
            place = "/".join(former.place)
            logger.error("The scale sets of %s at %s stay there: %s", self._identity.unit, place, error)

    def _state_of(self, handed: AgentSettings) -> CharmState:
        """A state with which clients do what the agent could do."""
        if not (self._state.token or self._state.app):
            # The options are invalid: the proxies have not been taken from them.
            os.environ.update(handed.proxies)
        return replace(
            self._state,
            github_url=handed.github_url,
            path=handed.path,
            token=handed.token,
            app=None,
            ca_certificates=handed.ca_certificates,
        )

    @property
    def _in_demand(self) -> bool:
        return self._state.scaling is Scaling.DEMAND

    def _note_begin(self, now: float) -> None:
        """Record since when demand decides: anew after a boot, at another place, and where there are other flavours.

        What GitHub has not answered yet then is given time, and the fallback does not begin at once.
        """
        path = self._state.path
        place = (self._state.github_url, path.path, getattr(path, "group", ""))
        names = (flavor.name for flavor in self._state.flavors)
        about = " ".join(filter(None, [kernel.boot_id(), *place, *names]))
        former = self._markers.read(SCALE_SETS)
        if (former or "").partition(" ")[2].strip() == about and self._markers.numbers(SCALE_SETS, 1) is not None:
            return
        try:
            self._markers.note(SCALE_SETS, f"{now:.0f} {about}")
        except HostError as error:
            if former is None:
                # Nobody would delete the sets.
                raise
            logger.warning("Since when demand decides was not recorded: %s", error)

    def _since(self, now: float) -> float:
        found = self._markers.numbers(SCALE_SETS, 1)
        return found[0] if found else now

    def _registration(self, number: int) -> Registration:
        return ScaleSetRegistration(self._client, number)

    def _found(self) -> dict[str, demand.Demand]:
        """What GitHub has answered the agent. Nothing if it was handed another place: it has other numbers of sets."""
        handed = agent_settings.load(self._identity.unit) if self._in_demand else None
        if handed is None or not self._is_of_this_place(handed):
            return {}
        return demand.load(self._identity.unit)

    def _is_of_this_place(self, handed: AgentSettings) -> bool:
        return (handed.github_url, handed.path) == (self._state.github_url, self._state.path)

    @cached_property
    def _client(self) -> ScaleSetClient:
        return self._connect(self._state, self._github())
