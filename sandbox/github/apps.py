"""GitHub Apps: their keys, the JSON web tokens that they sign, their installations, and the tokens of these."""

import base64
import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox.github import openssl
from sandbox.github.errors import RefusedError
from sandbox.github.forms import version_parts

LONGEST_JWT = 600  # seconds from GitHub's time to a JWT's end, at most
LEVELS = ("read", "write", "admin")
MAX_REPOSITORIES = 500
EXPONENT = 65537
# What an RSA signature of a SHA-256 digest has before the digest: RFC 8017, 9.2.
DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
UNDECODABLE = "A JSON web token could not be decoded"
ISSUER = "'Issuer' claim ('iss') must be an Integer"
FIRST_CLIENT_ID = [3, 15]  # the version of GitHub Enterprise Server from which on a client id is an issuer
ISSUED_AT = "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
EXPIRATION = "'Expiration time' claim ('exp')"
EXPIRED = f"{EXPIRATION} must be a numeric value representing the future time at which the assertion expires"
SUSPENDED = "This installation has been suspended"
UNGRANTED = "The permissions requested are not granted to this installation."
INACCESSIBLE = "There is at least one repository that does not exist or is not accessible to the parent installation."


@dataclass
class App:
    """A GitHub App; `keys` are the moduli of its active keys by their number."""

    id: int
    slug: str
    owner: str
    permissions: dict[str, str]
    created_at: float
    keys: dict[int, int] = field(default_factory=dict)

    @property
    def client_id(self) -> str:
        """The other name of the App, which GitHub recommends as issuer."""
        return "Iv23li" + hashlib.sha256(f"{self.id}".encode()).hexdigest()[:14]


@dataclass
class Installation:
    """An App on an account: on all repositories of it, or on those that are named in full."""

    id: int
    app: App
    account: str
    kind: str  # Organization or User
    permissions: dict[str, str]
    repositories: list[str] | None
    created_at: float
    suspended_at: float | None = None

    def covers(self, place: str) -> bool:
        """Whether the App may do something for this organisation or repository at all."""
        owner, _, name = place.partition("/")
        selected = not name or self.repositories is None or place in self.repositories
        return owner.lower() == self.account.lower() and selected


@dataclass
class InstallationToken:
    """What an App works with for an hour: permissions and repositories, no more than the installation has."""

    token: str
    installation: Installation
    permissions: dict[str, str]
    repositories: list[str] | None
    end: float
    refusal = "Resource not accessible by integration"

    @property
    def budget(self) -> str:
        """All tokens of an installation share one limit of requests."""
        return f"installation {self.installation.id}"

    @property
    def who(self) -> str:
        return f"installation ID {self.installation.id}"

    def needs_sso(self, place: str) -> bool:
        return False

    def may_see(self, place: str) -> bool:
        selected = "/" not in place or self.repositories is None or place in self.repositories
        return selected and self.installation.covers(place)

    def may_use(self, place: str, permission: str) -> bool:
        """Whether the token has the permission (``name=level``) and its installation still grants it."""
        name, _, level = permission.partition("=")
        return grants(self.permissions, name, level) and grants(self.installation.permissions, name, level)


def grants(permissions: dict[str, str], name: str, level: str) -> bool:
    """Whether these permissions hold this one; a higher level holds the lower ones. All may read metadata."""
    held = permissions.get(name, "read" if name == "metadata" else None)
    return held is not None and LEVELS.index(held) >= LEVELS.index(level)


def make_key(pem: str | None = None) -> tuple[str, int]:
    """A private key as GitHub offers it for download (PKCS#1 as PEM), or the given one, with its modulus."""
    pem = pem or openssl.run("genrsa", "-traditional", "2048")
    return pem, int(openssl.run("rsa", "-noout", "-modulus", given=pem).partition("=")[2], 16)


def is_signed(modulus: int, data: bytes, signature: bytes) -> bool:
    """Whether the signature is one of RS256 (RSASSA-PKCS1-v1_5 with SHA-256) by the key of this modulus."""
    size = (modulus.bit_length() + 7) // 8
    end = b"\0" + DIGEST_INFO + hashlib.sha256(data).digest()
    expected = b"\0\1" + b"\xff" * (size - 2 - len(end)) + end
    found = pow(int.from_bytes(signature, "big"), EXPONENT, modulus).to_bytes(size, "big")
    return len(signature) == size and found == expected


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _claims(assertion: str) -> dict[str, Any]:
    """The claims of a JWT, whoever signed it; refused if it is none."""
    try:
        header, claims, _ = (_decoded(part) for part in assertion.split("."))
        documents = [json.loads(header), json.loads(claims)]
    except ValueError:
        raise RefusedError(401, UNDECODABLE) from None
    if not all(isinstance(document, dict) for document in documents):
        raise RefusedError(401, UNDECODABLE)
    if documents[0].get("alg") != "RS256" or "=" in assertion:
        raise RefusedError(401, UNDECODABLE)
    return documents[1]


class Apps:
    """All Apps, installations and their tokens; `clock` is GitHub's, `version` the Enterprise Server's or empty."""

    def __init__(self, clock: Callable[[], float], version: Callable[[], str]) -> None:
        self._clock = clock
        self._version = version
        self._last = 2_000_000
        self.apps: dict[int, App] = {}
        self.installations: dict[int, Installation] = {}
        self.tokens: dict[str, InstallationToken] = {}

    def _number(self) -> int:
        self._last += 1
        return self._last

    def add_app(self, slug: str, owner: str, permissions: dict[str, str]) -> App:
        app = App(self._number(), slug, owner, self.checked(permissions), self._clock())
        return self.apps.setdefault(app.id, app)

    def add_key(self, app: App, pem: str | None = None) -> tuple[int, str]:
        """Another active key of the App: its number, and the private key."""
        number = self._number()
        pem, app.keys[number] = make_key(pem)
        return number, pem

    def install(
        self, app: App, account: str, kind: str, permissions: dict[str, Any] | None, places: list[str] | None
    ) -> Installation:
        """Install the App, with permissions of its own only where its owner has not accepted the App's latest."""
        granted = dict(app.permissions) if permissions is None else self.checked(permissions)
        installation = Installation(self._number(), app, account, kind, granted, places, self._clock())
        return self.installations.setdefault(installation.id, installation)

    def uninstall(self, installation: Installation) -> None:
        """Remove the App from the account; its tokens are over."""
        del self.installations[installation.id]
        self.tokens = {key: token for key, token in self.tokens.items() if token.installation is not installation}

    def rename(self, old: str, new: str) -> None:
        """Let a renamed repository keep its place in installations and tokens."""
        holders: list[Installation | InstallationToken] = [*self.installations.values(), *self.tokens.values()]
        for holder in holders:
            if holder.repositories is not None:
                holder.repositories = [new if place == old else place for place in holder.repositories]

    def checked(self, permissions: object) -> dict[str, str]:
        """Permissions by name, if they have that form."""
        if not isinstance(permissions, dict) or not all(level in LEVELS for level in permissions.values()):
            raise RefusedError(422, "Invalid request.\n\nPermissions have the levels read, write or admin.")
        return {**permissions, "metadata": permissions.get("metadata", "read")}

    def claimed(self, assertion: str) -> App | None:
        """The App that a JWT names as its issuer, by number or client id, whoever signed it."""
        try:
            issuer = str(_claims(assertion).get("iss"))
        except RefusedError:
            return None
        by_client_id = not self._version() or version_parts(self._version()) >= FIRST_CLIENT_ID
        names = {str(app.id): app for app in self.apps.values()}
        names |= {app.client_id: app for app in self.apps.values() if by_client_id}
        return names.get(issuer)

    def authenticate(self, assertion: str) -> App:
        """The App that has signed this JWT; refused with GitHub's words if one of its rules is broken."""
        claims, now = _claims(assertion), self._clock()
        if "iss" not in claims:
            raise RefusedError(401, "Missing 'issuer' claim ('iss') in assertion")
        app = self.claimed(assertion)
        if app is None and str(claims["iss"]).isdigit():
            raise RefusedError(404, "Integration not found")
        if app is None:
            raise RefusedError(401, ISSUER)
        data, _, signature = assertion.rpartition(".")
        if not any(is_signed(modulus, data.encode(), _decoded(signature)) for modulus in app.keys.values()):
            raise RefusedError(401, UNDECODABLE)
        issued, end = claims.get("iat"), claims.get("exp")
        if not isinstance(issued, int) or issued > now:
            raise RefusedError(401, ISSUED_AT)
        if not isinstance(end, int | float) or end <= now:
            raise RefusedError(401, EXPIRED)
        if end > now + LONGEST_JWT:
            raise RefusedError(401, f"{EXPIRATION} is too far in the future")
        return app

    def installation(self, app: App, number: int) -> Installation:
        found = self.installations.get(number)
        if found is None or found.app is not app:
            raise RefusedError(404, "Not Found")
        return found

    def make_token(
        self, installation: Installation, permissions: object, places: list[str] | None, life: float, stateless: bool
    ) -> InstallationToken:
        """A token with the permissions that are asked for, or none named for all; None for all repositories."""
        if installation.suspended_at is not None:
            raise RefusedError(403, SUSPENDED)
        asked = self.checked(permissions or installation.permissions)
        if not all(grants(installation.permissions, name, level) for name, level in asked.items()):
            raise RefusedError(422, UNGRANTED)
        if places is not None and not all(installation.covers(place) for place in places):
            raise RefusedError(422, INACCESSIBLE)
        end = float(int(self._clock() + life))
        text = _stateless(installation, end) if stateless else f"ghs_{secrets.token_hex(18)}"
        token = InstallationToken(text, installation, asked, places, end)
        return self.tokens.setdefault(text, token)

    def token(self, text: str) -> InstallationToken | None:
        """The token, unless it is unknown, revoked or over."""
        token = self.tokens.get(text)
        return token if token is not None and self._clock() < token.end else None


def _stateless(installation: Installation, end: float) -> str:
    """GitHub's newer form: a prefix, the App's id, and a JWT; several hundred characters, dots among them."""
    header = {"alg": "RS256", "typ": "JWT", "kid": secrets.token_hex(16)}
    claims = {"iss": "github", "sub": f"installation:{installation.id}", "exp": int(end), "jti": secrets.token_hex(16)}
    parts = [json.dumps(part).encode() for part in (header, claims)]
    return f"ghs_{installation.app.id}_" + ".".join(_encoded(part) for part in (*parts, secrets.token_bytes(256)))
