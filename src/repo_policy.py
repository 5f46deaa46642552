"""Client of an external repo-policy-compliance service."""

import time

import httpx2
import stamina

import redaction
from errors import PolicyError
from models import RepoPolicy
from system import within

TIMEOUT = httpx2.Timeout(10, connect=5)
# Of all attempts for one token, in seconds, and of one answer, in bytes.
DEADLINE = 30.0
ANSWER_LIMIT = 4096


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
        end = time.monotonic() + DEADLINE
        try:
            for attempt in stamina.retry_context(on=httpx2.TransportError, attempts=3, timeout=20, wait_initial=0.5):
                with attempt:
                    answer = within(end, self._ask)
        except httpx2.HTTPStatusError as error:
            raise PolicyError(f"the policy service refused a token ({error.response.status_code})") from None
        except httpx2.HTTPError as error:
            raise PolicyError(f"the policy service does not answer ({type(error).__name__})") from None
        except TimeoutError:
            raise PolicyError(f"the policy service does not answer within {DEADLINE:.0f} s") from None
        token = answer.decode("ascii", errors="replace").strip()
        if not token.isprintable() or not token.isascii() or not 0 < len(token) <= 1024:
            raise PolicyError("the policy service's token is not one")
        redaction.note_received(token)
        return token

    def _ask(self) -> bytes:
        """One answer as it is sent: what is packed is not unpacked, which could have any size."""
        headers = {"Authorization": f"Bearer {self._policy.token}", "Accept-Encoding": "identity"}
        url, found = f"{self._policy.url}/one-time-token", b""
        # The service is the operator's own: never through the model's proxy.
        with (
            httpx2.Client(timeout=TIMEOUT, trust_env=False) as client,
            client.stream("GET", url, headers=headers) as sent,
        ):
            sent.raise_for_status()
            for chunk in sent.iter_raw():
                found += chunk
                if len(found) > ANSWER_LIMIT:
                    raise PolicyError(f"the policy service's answer is larger than {ANSWER_LIMIT} bytes")
        return found
