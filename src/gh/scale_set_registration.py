"""Registering a runner in a runner scale set."""

from collections.abc import Sequence

from errors import GithubApiError
from gh.errors import StatusError
from gh.registration import Registration, read_configuration
from gh.scale_sets import ScaleSetClient
from models import RegistrationData


class ScaleSetRegistration(Registration):
    """A record of a set for each runner before its instance exists, as with just-in-time configurations.

    Labels and group are those of the set.
    """

    def __init__(self, client: ScaleSetClient, number: int) -> None:
        self._client = client
        self._number = number

    def prepare(self) -> None:
        """See that the service of scale sets can be reached."""
        self._client.connect()

    @property
    def shared(self) -> object:
        """The client: a service that does not answer would keep each set's flavour waiting in turn."""
        return self._client

    def register(self, name: str, labels: Sequence[str]) -> RegistrationData:
        """Make the record, and check the configuration that GitHub gives with it."""
        try:
            number, encoded = self._client.jit_configuration(self._number, name)
        except StatusError as error:
            # Names are random: one that is taken was registered by a request of this call, whose answer was lost.
            taken = self._client.record(name) if error.status == 409 else None
            if taken is None:
                raise
            self._client.delete_record(taken)
            number, encoded = self._client.jit_configuration(self._number, name)
        try:
            return RegistrationData(files=read_configuration(encoded), runner_id=number)
        except GithubApiError:
            self._client.delete_record(number)
            raise
