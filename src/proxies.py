"""HTTP proxies, and what aproxy redirects to them in a runner. Nothing here does I/O."""

import re
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from urllib.parse import SplitResult, urlsplit

import redaction

# Never redirected, whatever the options are: a program talks to itself there.
LOOPBACK = IPv4Network("127.0.0.0/8")
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Redirect:
    """TCP connections that aproxy gets: to these ranges of ports, except to these networks.

    Neither ranges nor networks overlap: the programs that load them into the kernel may refuse that.
    """

    ports: tuple[tuple[int, int], ...] = ((80, 80), (443, 443))
    excluded: tuple[IPv4Network, ...] = (
        IPv4Network("10.0.0.0/8"),
        LOOPBACK,
        IPv4Network("172.16.0.0/12"),
        IPv4Network("192.168.0.0/16"),
    )

    def captures(self, address: IPv4Address, port: int) -> bool:
        """Whether aproxy gets a connection to this address."""
        return any(first <= port <= last for first, last in self.ports) and not any(
            address in network for network in self.excluded
        )


@dataclass(frozen=True)
class ProxyConfig:
    """HTTP proxies; no-proxy alone is ignored."""

    http: str | None = field(default=None, repr=False)
    https: str | None = field(default=None, repr=False)
    no_proxy: str | None = None
    use_aproxy: bool = False
    redirect: Redirect = Redirect()

    def __post_init__(self) -> None:
        """Proxies may have a password."""
        redaction.note_url(self.http)
        redaction.note_url(self.https)

    def __bool__(self) -> bool:
        """Whether there is a proxy at all."""
        return bool(self.http or self.https)

    @property
    def _upstream(self) -> SplitResult | None:
        """The proxy that aproxy forwards to, or None where aproxy is not used."""
        return urlsplit(self.http or self.https or "") if self.use_aproxy and self else None

    @property
    def aproxy_address(self) -> str | None:
        """``HOST:PORT`` that aproxy forwards to, or None where aproxy is not used. It refuses one without a port."""
        upstream = self._upstream
        if not upstream:
            return None
        host = upstream.netloc.rsplit("@", 1)[-1].lower().rstrip(":")
        return host if upstream.port else f"{host}:{DEFAULT_PORTS[upstream.scheme]}"

    @property
    def suits_aproxy(self) -> bool:
        """Whether the proxy's host has a form that aproxy takes: a name or an IPv4 address.

        https://github.com/canonical/aproxy/blob/main/snap/hooks/configure
        """
        upstream = self._upstream
        return not upstream or re.fullmatch("[a-z0-9.-]+", upstream.hostname or "") is not None

    @property
    def captured(self) -> tuple[IPv4Address, int] | None:
        """Address and port of the proxy if aproxy's own connections to it were redirected to aproxy.

        None where that is not so, or not known: the proxy has a host name. Its URL may leave out the port.
        """
        upstream = self._upstream
        if not upstream:
            return None
        try:
            address = IPv4Address(upstream.hostname or "")
        except AddressValueError:
            return None
        port = upstream.port or DEFAULT_PORTS[upstream.scheme]
        return (address, port) if self.redirect.captures(address, port) else None

    def environment(self, *no_proxy: str) -> dict[str, str]:
        """The variables in both cases of letters; ``no_proxy`` are hosts to add. Empty without a proxy."""
        if not self:
            return {}
        hosts = [host for host in (self.no_proxy or "").split(",") if host.strip()] + list(no_proxy)
        values = {"HTTP_PROXY": self.http, "HTTPS_PROXY": self.https, "NO_PROXY": ",".join(hosts)}
        given = {name: value for name, value in values.items() if value}
        return {**given, **{name.lower(): value for name, value in given.items()}}
