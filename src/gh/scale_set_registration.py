"""Registering a runner in a runner scale set."""

from collections.abc import Sequence

from errors import GithubApiError, RateLimitError
from gh.errors import StatusError
from gh.registration import Registration, read_configuration, remaining
from gh.scale_sets import ScaleSetClient
from models import RegistrationData


class ScaleSetRegistration(Registration):
    """Registers each runner in a scale set before its instance exists, as JitRegistration does without a set.

    The runner has the labels and the group of the set.
    """

    def __init__(self, client: ScaleSetClient, set_id: int) -> None:
        self._client = client
        self._set_id = set_id

    def prepare(self) -> None:
        """See that the service of scale sets can be reached."""
        self._client.connect()

    @property
    def shared(self) -> object:
        """The client: if the service does not answer, one attempt shows it for the sets of all flavours."""
        return self._client

    def register(self, name: str, labels: Sequence[str]) -> RegistrationData:
        """Make the record, and check the configuration that GitHub gives with it. After an error no record stays."""
        try:
            runner_id, encoded = self._generate_once_more(name)
            return RegistrationData(files=read_configuration(encoded), runner_id=runner_id)
        except GithubApiError as error:
            # A refusal makes no record, and an answer that was lost or is not complete may have.
            if not isinstance(error, (StatusError, RateLimitError)):
                with remaining(name):
                    self._removed(name)
            raise

    def _generate_once_more(self, name: str) -> tuple[int, str]:
        try:
            return self._client.jit_configuration(self._set_id, name)
        except StatusError as error:
            # Names are random: one that is taken was registered by a request of this call, whose answer was lost.
            if error.status != 409 or not self._removed(name):
                raise
            return self._client.jit_configuration(self._set_id, name)

    def _removed(self, name: str) -> bool:
        taken = self._client.record(name)
        if taken is not None:
            self._client.delete_record(taken)
        return taken is not None
