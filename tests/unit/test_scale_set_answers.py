"""What is read out of the answers of GitHub's service for runner scale sets."""

import base64
import json
import time

import pytest

from errors import GithubApiError
from gh import scale_set_answers as read

LARGEST = 2**63 - 1


@pytest.mark.parametrize("name", ["", "a", "ab", "abc"])
def test_the_life_of_a_token_is_read_whatever_its_length(name: str) -> None:
    """The part of a JSON web token that says when it ends is base64 without padding (RFC 7515, section 2)."""
    claims = json.dumps({"exp": time.time() + 3600, "sub": name}).encode()
    token = f"head.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.signature"

    assert read.life(token) == pytest.approx(3600, abs=30)


@pytest.mark.parametrize("token", ["", "head", "head.%%.signature", "head.e30.signature", "head.bnVsbA.signature"])
def test_a_token_whose_life_cannot_be_read_is_renewed_soon(token: str) -> None:
    """Nothing of it is an error: the service may give tokens of another form."""
    assert read.life(token) == read.TOKEN_LIFE


def test_numbers_of_the_service_have_64_bits() -> None:
    """Any id of that size is used; what is larger is damage."""
    item = {"id": LARGEST, "name": "set", "runnerGroupId": 126, "labels": []}

    assert read.scale_set(item) == read.ScaleSet(LARGEST, "set", 126, ())
    with pytest.raises(GithubApiError):
        read.scale_set({**item, "id": LARGEST + 1})


def test_all_labels_of_a_set_are_read() -> None:
    """The largest one of this charm has 101. What is beyond 200 is damage."""
    for number, expected in ((101, 101), (999, 200)):
        labels = [{"name": f"label-{each}"} for each in range(number)]
        found = read.scale_set({"id": 7, "name": "app", "runnerGroupId": 1, "labels": labels})
        assert len(found.labels) == expected
