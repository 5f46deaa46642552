"""The forms of options and relation values: each function gives the parsed value, or ValueError with what is wrong."""

import ipaddress
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redaction
from models import (
    SIZE_UNITS,
    Arch,
    BaseImage,
    GithubPath,
    ImageSource,
    RegistrationMethod,
    RunnerStorage,
    Scaling,
    SSHDebugConnection,
    parse_github_path,
    size_in_bytes,
)
from proxies import LOOPBACK

SSH_KEYS = ("host", "port", "rsa_fingerprint", "ed25519_fingerprint")
# What the operator can do about a value of a relation.
RELATED = "correct it in the related application, or remove the relation"
LABEL_LIMIT = 256
# GitHub accepts 100 labels for a runner (https://docs.github.com/en/rest/actions/self-hosted-runners): three that it
# gives by itself, the application's name, the base image, and these.
MOST_LABELS = 95
GROUP_LIMIT = 256
# https://www.debian.org/doc/debian-policy/ch-controlfields.html#source; no package's name is nearly as long.
PACKAGE_NAME = re.compile("[a-z0-9][a-z0-9+.-]{1,99}")
MOST_PACKAGES = 200
# Of a script, in bytes of UTF-8.
SCRIPT_LIMIT = 64 << 10
# An action's repository and ref. GitHub's logins have 39 characters at most, and repositories 100; the characters of a
# ref are those that every part on its way leaves alone (https://git-scm.com/docs/git-check-ref-format has more).
ACTION = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}/(?!\.{1,2}@)[A-Za-z0-9._-]{1,100}@[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}"
)
# Each costs two of the 60 anonymous requests an hour that github.com grants an address.
MOST_ACTIONS = 20
# Of lists of networks and ports, which the kernel gets.
MOST_ITEMS = 1000
# Of a rejected value in a message, in characters.
SHOWN_LIMIT = 40
IMAGES = {
    "jammy": BaseImage.JAMMY,
    "22.04": BaseImage.JAMMY,
    "noble": BaseImage.NOBLE,
    "24.04": BaseImage.NOBLE,
    "resolute": BaseImage.RESOLUTE,
    "26.04": BaseImage.RESOLUTE,
}


def parse_url(value: str, *schemes: str, credentials: bool = False, ending: str = "URL; set such a URL") -> str:
    """A URL of one of the schemes, without a trailing slash; nothing in it can end a word of a shell, unit or file.

    ``ending`` is that of the error's text.
    """
    value = value.strip().rstrip("/")
    try:
        parts = urlsplit(value)
        good = parts.scheme in schemes and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if (
        not good
        or not re.fullmatch(r"""[^\x00-\x20\x7f-\U0010ffff'"$`\\;?#]+""", value)
        # A password with a slash in it would end the host's name.
        or ("@" in parts.path and "@" not in parts.netloc)
        or (parts.username is not None and not credentials)
    ):
        forms = " or ".join(f"{scheme}://" for scheme in schemes)
        article = "an" if schemes == ("https",) else "a"
        raise ValueError(f"{_without_user(value)!r} is not {article} {forms} {ending}")
    return value


def _without_user(value: str) -> str:
    """A rejected value without what may be a password."""
    return re.sub(r"(?s)^(.*?//)?.*@", r"\1…@", value)


def _refuse_plain(url: str, plain: bool, reason: str) -> None:
    if urlsplit(url).scheme == "http" and not plain:
        raise ValueError(f"{url!r} is not encrypted: {reason}; use https:// (test-mode=insecure accepts http://)")


def parse_github_url(value: str, plain: bool = False) -> str:
    """The address of a GitHub: scheme and host, without a path; ``plain`` accepts http."""
    url = parse_url(value, "http", "https", ending="URL of a GitHub, such as https://github.com; set such a URL")
    parts = urlsplit(url)
    # These hosts belong to github.com or to SUB.ghe.com. Runners do not register at them.
    host = re.sub(r"^(api|www)\.(?=github\.com(:|$)|[^.]+\.ghe\.com(:|$))", "", parts.netloc.lower())
    if parts.path or host != parts.netloc.lower():
        raise ValueError(
            f"{url!r} is not the address of a GitHub; use {parts.scheme}://{host} and set the owner in path"
        )
    _refuse_plain(url, plain, "the token could be read on the way")
    return url


def parse_certificates(value: str) -> tuple[str, ...]:
    """PEM certificates, one after another; text between them is dropped. A private key is refused."""
    pem = value.replace("\r", "")
    kinds = set(re.findall("-----BEGIN ([^-\n]*)-----", pem))
    found = re.findall("-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+\n-----END CERTIFICATE-----", pem)
    try:
        if kinds - {"CERTIFICATE"} or pem.count("-----BEGIN") != len(found) or (pem.strip() and not found):
            raise ValueError
        if found:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata="\n".join(found))
    except (ValueError, ssl.SSLError):
        raise ValueError("is not PEM; give certificates only, each from its BEGIN line to its END line") from None
    return tuple(f"{certificate}\n" for certificate in dict.fromkeys(found))


def parse_path(path: str) -> GithubPath:
    """``owner/repo`` or ``org``; surplus slashes around the owner and the repository are ignored."""
    if not path.strip(" /"):
        raise ValueError("is empty; give owner/repo or org")
    return parse_github_path(path.strip())


def parse_group(group: str) -> str:
    """A runner group's name. It is quoted where it is used, so that any printable character is accepted."""
    name = group.strip()
    # config.sh would take a name with a leading hyphen for one of its own options.
    if not name.isprintable() or not 1 <= len(name) <= GROUP_LIMIT or name.startswith("-"):
        raise ValueError(
            f"{shortened(name)} is not a runner group's name; use 1 to {GROUP_LIMIT} printable characters, "
            "the first of which is not -"
        )
    return name


def shortened(text: str) -> str:
    """A rejected value for a message, without secrets and of bounded length."""
    shown = redaction.redact(text)
    return repr(shown if len(shown) <= SHOWN_LIMIT else f"{shown[:SHOWN_LIMIT]}…")


def parse_private_key(value: str) -> str:
    """An RSA private key in PEM form, as GitHub gives it (PKCS#1) or converted (PKCS#8)."""
    pem = value.replace("\r", "").strip()
    if not re.fullmatch("-----BEGIN ((?:RSA )?PRIVATE KEY)-----\n[A-Za-z0-9+/=\n]+\n-----END \\1-----", pem):
        raise ValueError(
            "private-key is not an unencrypted private key in PEM form; "
            "add the file of the GitHub App with private-key#file=FILE"
        )
    return f"{pem}\n"


def parse_registration(value: str) -> RegistrationMethod:
    """``auto``, ``jit`` or ``token``."""
    try:
        return RegistrationMethod(value.strip())
    except ValueError:
        raise ValueError(f"{shortened(value)} is not one of auto, jit, token; set one of them") from None


def parse_token(token: str) -> str:
    """A token of GitHub or of the policy service. It is masked from now on."""
    redaction.note(token)
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError("is blank or has characters that a token never has; use printable ASCII without blanks")
    return token


def parse_labels(value: str) -> tuple[str, ...]:
    """Labels of a comma list: whatever GitHub accepts. The message names every bad one.

    config.sh splits the list at commas and limits each label to 256 UTF-16 code units
    (https://github.com/actions/runner/blob/main/src/Runner.Listener/Configuration/Validators.cs).
    """
    labels = [label.strip() for label in value.split(",") if label.strip()]
    bad = [label for label in labels if not label.isprintable() or len(label.encode("utf-16-le")) > 2 * LABEL_LIMIT]
    if bad:
        raise ValueError(
            f"{', '.join(map(shortened, bad))} not allowed; use printable characters, {LABEL_LIMIT} at most in a label"
        )
    number = len({label.lower() for label in labels})
    if number > MOST_LABELS:
        raise ValueError(f"{number} labels are too many; set {MOST_LABELS} at most")
    return tuple(dict.fromkeys(labels))


def parse_actions(value: str) -> tuple[str, ...]:
    """Actions of a comma list, each ``OWNER/REPO@REF``, without duplicates; every bad one is named."""
    actions = tuple(dict.fromkeys(action.strip() for action in value.split(",") if action.strip()))
    bad = [action for action in actions if not _is_action(action)]
    # The archive is of the whole repository, whichever folder of it has the action.
    whole = {action: re.sub("^([^/@]*/[^/@]*)/[^@]*", r"\1", action) for action in bad}
    errors = [f"{shortened(action)} has a path, write {whole[action]}" for action in bad if _is_action(whole[action])]
    others = [shortened(_without_credential(action)) for action in bad if not _is_action(whole[action])]
    if others:
        errors.append(f"{', '.join(others)} not of the form owner/repo@ref, such as actions/checkout@v5; use this form")
    if errors:
        raise ValueError("; ".join(errors))
    if len(actions) > MOST_ACTIONS:
        raise ValueError(f"{len(actions)} actions are too many; set {MOST_ACTIONS} at most")
    return actions


def _without_credential(action: str) -> str:
    """A rejected action without the password or token that an address with or without a scheme may have."""
    if "//" in action:
        return _without_user(action)
    # Everything before the last @ of several but one, or before the only one if the host follows it.
    return re.sub(r"(?s)^(.*@(?=[^@]*@)|[^/@]*@(?=[^@]*/))", "…@", action)


def _is_action(action: str) -> bool:
    ref = action.partition("@")[2]
    return bool(ACTION.fullmatch(action)) and not re.search(r"\.\.|//|[/.]$", ref)


def at_least(value: Any, minimum: int) -> int:
    """A whole number that is not below the minimum."""
    if int(value) < minimum:
        raise ValueError(f"{value} is too small; it must be {minimum} or more")
    return int(value)


def parse_port(value: Any) -> int:
    """A TCP port, or 0 for none."""
    if not 0 <= int(value) <= 65535:
        raise ValueError(f"{value} is not a port; set 1 to 65535, or 0 for none")
    return int(value)


def parse_size(value: str) -> str:
    """A size such as ``7GiB``, within what LXD can count (63 bits)."""
    if size_in_bytes(value.strip()) >= 1 << 63:
        raise ValueError(f"{value!r} is more than LXD can count; set a size below 8EiB")
    return value.strip()


def parse_reserve(value: str) -> int:
    """Bytes of a size such as ``2GiB``, or of ``0`` with or without a unit."""
    text = value.strip()
    if re.fullmatch(f"0({'|'.join(SIZE_UNITS)})?", text):
        return 0
    try:
        return size_in_bytes(parse_size(text))
    except ValueError:
        raise ValueError(f"{shortened(text)} is not a size such as 2GiB, nor 0; set one of the two") from None


def parse_overcommit(value: str) -> float:
    """A number above 0 such as ``1.5``, with up to six digits on each side of the point."""
    text = value.strip()
    if not re.fullmatch(r"(?=\.?[0-9])[0-9]{0,6}(\.[0-9]{0,6})?", text, re.ASCII) or not float(text):
        raise ValueError(f"{shortened(text)} is not a number above 0 such as 2.0, 999999 at most; set such a number")
    return float(text)


def parse_scaling(value: str) -> Scaling:
    """``fixed`` or ``demand``."""
    try:
        return Scaling(value.strip())
    except ValueError:
        raise ValueError(f"{shortened(value)} is not one of fixed, demand; set one of them") from None


def parse_base_image(value: str) -> BaseImage:
    """A release's name or number, in any case."""
    image = IMAGES.get(value.strip().lower())
    if image is None:
        raise ValueError(f"{shortened(value)} is not one of {', '.join(IMAGES)}; set one of them")
    return image


def parse_image_source(value: str, plain: bool = False) -> ImageSource:
    """A simplestreams server's URL, or ``local:ALIAS``; ``plain`` accepts http."""
    value = value.strip()
    if value.startswith("local:"):
        return ImageSource.parse(value)
    server = parse_url(
        value, "https", "http", ending="URL of a simplestreams server, nor local:ALIAS; set one of the two"
    )
    _refuse_plain(server, plain, "the image could be replaced on the way")
    return ImageSource(server=server)


def parse_packages(value: str) -> tuple[str, ...]:
    """Names of apt packages in a comma list, without duplicates; every bad one is named."""
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    bad = [name for name in names if not PACKAGE_NAME.fullmatch(name)]
    if bad:
        raise ValueError(
            f"{', '.join(map(shortened, bad))} not a package's name; use names such as g++ or libssl-dev, "
            "separated by commas"
        )
    if len(names) > MOST_PACKAGES:
        raise ValueError(f"{len(names)} packages are too many; set {MOST_PACKAGES} at most")
    return names


def parse_script(value: str) -> str:
    """A script that begins with ``#!``, or an empty text. It may hold secrets: no error quotes it."""
    if not value.strip():
        return ""
    # A file of Windows: its interpreter would be looked for with a carriage return in its name.
    script = value.replace("\r\n", "\n")
    if not script.startswith("#!"):
        raise ValueError("does not begin with #!; its first line must name the interpreter, such as #!/bin/bash")
    if "\0" in script or any("\ud800" <= char <= "\udfff" for char in script):
        raise ValueError("is not a text; give a script in UTF-8 without NUL bytes")
    size = len(script.encode())
    if size > SCRIPT_LIMIT:
        raise ValueError(f"{size} bytes are too many; give {SCRIPT_LIMIT} at most, and download what is larger")
    return script


def parse_storage(value: str) -> RunnerStorage:
    """``juju-storage`` or ``memory``."""
    try:
        return RunnerStorage(value.strip())
    except ValueError:
        raise ValueError(f"{value!r} is not one of juju-storage, memory; set one of them") from None


def parse_denylist(value: str) -> tuple[ipaddress.IPv4Network, ...]:
    """IPv4 networks of a comma list; every bad one is named."""
    networks, bad = [], []
    for item in _items(value):
        try:
            networks.append(ipaddress.IPv4Network(item))
        except ValueError as error:
            bad.append(f"{item!r} ({error})")
    if bad:
        raise ValueError(f"{', '.join(bad)} not an IPv4 network in CIDR form such as 10.0.0.0/8; use this form")
    return tuple(networks)


def _items(value: str) -> list[str]:
    """The items of a comma list."""
    items = [part.strip() for part in value.split(",") if part.strip()]
    if len(items) > MOST_ITEMS:
        raise ValueError(f"{len(items)} items are too many; set {MOST_ITEMS} at most")
    return items


_Item = TypeVar("_Item")


def _each(value: str, parse: Callable[[str], _Item], form: str) -> list[_Item]:
    """The items of a comma list; ValueError names every bad one, shortened, and the accepted form."""
    found, bad = [], []
    for item in _items(value):
        try:
            found.append(parse(item))
        except ValueError:
            bad.append(shortened(item))
    if bad:
        raise ValueError(f"{', '.join(bad)} not accepted; use {form}")
    return found


def parse_addresses(value: str) -> tuple[ipaddress.IPv4Network, ...]:
    """IPv4 addresses, networks and ranges of a comma list, and loopback, as networks that do not overlap."""
    form = "IPv4 addresses, networks such as 10.0.0.0/8 (host bits zero), or ranges such as 10.0.0.1-10.0.0.9"
    found = _each(value, _networks, form)
    networks = tuple(ipaddress.collapse_addresses([LOOPBACK, *(network for several in found for network in several)]))
    if len(networks) > MOST_ITEMS:
        raise ValueError(
            f"these are {len(networks)} networks in CIDR form; {MOST_ITEMS} at most are accepted; use larger ones"
        )
    return networks


def _networks(item: str) -> Iterable[ipaddress.IPv4Network]:
    """The networks of an address, a network, or a range ``first-last``."""
    first, dash, last = item.partition("-")
    if not dash:
        # Python also takes a netmask or a hostmask behind the slash.
        if not re.fullmatch(r"[0-9.]+(/[0-9]{1,2})?", item, re.ASCII):
            raise ValueError(item)
        return (ipaddress.IPv4Network(item),)
    ends = (ipaddress.IPv4Address(end.strip()) for end in (first, last))
    return tuple(ipaddress.summarize_address_range(*ends))


def parse_ports(value: str) -> tuple[tuple[int, int], ...]:
    """TCP ports and ranges of a comma list, as ranges in ascending order that neither overlap nor touch."""
    form = "ports from 1 to 65535, or ranges such as 8000-8080"
    merged: list[tuple[int, int]] = []
    for first, last in sorted(_each(value, _range_of_ports, form)):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    if not merged:
        raise ValueError(f"is empty; use {form}")
    return tuple(merged)


def _range_of_ports(item: str) -> tuple[int, int]:
    """First and last port of ``port`` or ``first-last``."""
    match = re.fullmatch(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?", item, re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= 65535:
        raise ValueError(item)
    return first, last


def parse_mirror(value: str) -> str | None:
    """An https URL, or None if the option is empty. It may have credentials, and keeps a trailing slash."""
    if not value.strip():
        return None
    parse_url(value, "https", credentials=True)
    return value.strip()


def parse_no_proxy(value: str) -> str | None:
    """A comma list of hosts and networks."""
    hosts = [host.strip() for host in value.split(",") if host.strip()]
    bad = [host for host in hosts if not re.fullmatch(r"[A-Za-z0-9_.:/*\[\]-]+", host)]
    if bad:
        shown = ", ".join(repr(_without_user(host)) for host in bad)
        raise ValueError(f"{shown} is no host, domain or network; correct the model-config")
    return ",".join(hosts) or None


def parse_test_mode(value: Any) -> bool:
    """Whether runners are containers; only ``insecure`` says so."""
    if not value:
        return False
    if value != "insecure":
        raise ValueError(f"{value!r} is not accepted; the only value is insecure, else leave it unset")
    return True


def parse_arch(machine: str) -> Arch:
    """The architecture of this machine, as `uname -m` gives it."""
    known = {"x86_64": Arch.X64, "amd64": Arch.X64, "aarch64": Arch.ARM64, "arm64": Arch.ARM64}
    if machine.lower() not in known:
        raise ValueError(f"{machine!r} is not one of x86_64, aarch64; use another machine")
    return known[machine.lower()]


def parse_connection(data: Mapping[str, str]) -> SSHDebugConnection:
    """One tmate server, all of whose keys are there."""
    try:
        host = str(ipaddress.ip_address(data["host"]))
        if "%" in host:  # an IPv6 scope may be any text
            raise ValueError(host)
    except ValueError:
        raise ValueError(f"host {data['host']!r} is not an IP address; {RELATED}") from None
    if not re.fullmatch(r"[0-9]{1,5}", data["port"], re.ASCII) or not 1 <= int(data["port"]) <= 65535:
        raise ValueError(f"port {data['port']!r} is not a number from 1 to 65535; {RELATED}")
    for key in SSH_KEYS[2:]:
        if not re.fullmatch(r"SHA256:[A-Za-z0-9+/=]{1,64}", data[key]):
            raise ValueError(f"{key} {data[key]!r} is not of the form SHA256:…; {RELATED}")
    return SSHDebugConnection(host, int(data["port"]), data["rsa_fingerprint"], data["ed25519_fingerprint"])
