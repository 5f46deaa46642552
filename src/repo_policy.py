"""Client of an external repo-policy-compliance service (spec 2, Pre-job script)."""

import httpx2
import stamina

from errors import PolicyError
from models import RepoPolicy

TIMEOUT = httpx2.Timeout(10, connect=5)


class RepoPolicyClient:
    """Fetches the one-time tokens with which runners may ask the service."""

    def __init__(self, policy: RepoPolicy) -> None:
        self._policy = policy

    @property
    def url(self) -> str:
        """The service's address."""
        return self._policy.url

    def one_time_token(self) -> str:
        """A token for one check; PolicyError if the service gives none."""
        headers = {"Authorization": f"Bearer {self._policy.token}"}
        try:
            for attempt in stamina.retry_context(on=httpx2.TransportError, attempts=3, timeout=20, wait_initial=0.5):
                # The service is the operator's own: never through the model's proxy (spec 2).
                with attempt, httpx2.Client(timeout=TIMEOUT, trust_env=False) as client:
                    answer = client.get(f"{self._policy.url}/one-time-token", headers=headers)
                    answer.raise_for_status()
        except httpx2.HTTPStatusError as error:
            raise PolicyError(f"the policy service refused a token ({error.response.status_code})") from None
        except httpx2.HTTPError as error:
            raise PolicyError(f"the policy service does not answer ({type(error).__name__})") from None
        token: str = answer.text.strip()
        if not token.isprintable() or not token.isascii() or not 0 < len(token) <= 1024:
            raise PolicyError("the policy service's token is not one")
        return token
