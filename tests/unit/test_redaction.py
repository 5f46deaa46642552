"""No secret of an option, a relation or an answer reaches a status, a log line or the result of an action."""

import base64
import json
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import httpx2
import ops
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ops import testing

import agent_settings
import demand
import errors
import gh.errors
import listing
import option_values
import redaction
from demand import Demand
from engine import probe
from gh import scale_set_answers
from gh.auth import Pat
from gh.registration import REQUIRED, read_configuration
from gh.scale_set_answers import TEXT_LIMIT
from gh.scale_sets import ScaleSetClient
from host import agent, machine, markers, pool
from repo_policy import RepoPolicyClient
from tests.support.fakes import FakeGithub, state
from tests.support.surroundings import MODEL, Surroundings, context, make_context, noted, world

if TYPE_CHECKING:
    from engine.instance import LxdInstance

__all__ = ["context", "world"]

pytestmark = pytest.mark.usefixtures("quick_yaml")

MARK = "MARKED"
TOKEN, POLICY, MIRROR = f"ghp_{MARK}0'\"\\%x", f"{MARK}-policy-token", f"{MARK}1:%40{MARK}"
PROXY, PROXIES, REGISTRATION = f"{MARK}2+p", f"{MARK}3,p", f"A{MARK}4REGISTRATION"
RUNNERS = f"{MARK}6=p"
SECRETS = (TOKEN, POLICY, MIRROR, PROXY, PROXIES, RUNNERS, REGISTRATION)
PROXY_URL, PROXIES_URL = f"http://user:{PROXY}@proxy.example:3128", f"https://{PROXIES}@proxy.example"
KEY_LINE = f"MIIE{MARK}5app+key"
APP_KEY = f"-----BEGIN RSA PRIVATE KEY-----\n{KEY_LINE}\n-----END RSA PRIVATE KEY-----\n"
CONFIG: dict[str, Any] = {
    "path": "octo-org/demo",
    "test-mode": "insecure",
    "virtual-machines": 2,
    "token": TOKEN,
    "repo-policy-compliance-url": "https://policy.example",
    "repo-policy-compliance-token": POLICY,
    "dockerhub-mirror": f"https://user:{MIRROR}@mirror.example/",
    "runner-http-proxy": f"http://user:{RUNNERS}@runners.example:3128",
}
# What programs and libraries say when they fail, and where it is cut.
WORDS = " ".join(
    [
        *(
            f"--token {shlex.quote(secret)}, {json.dumps({'token': secret})}, {secret!r}, {quote(secret)};"
            for secret in SECRETS
        ),
        f"Get {CONFIG['dockerhub-mirror']} via {PROXY_URL}, {PROXIES_URL} or {CONFIG['runner-http-proxy']}: 407",
        f"Proxy-Authorization: Basic {base64.b64encode(f'user:{PROXY}'.encode()).decode()}",
    ]
)


def shows(text: str) -> bool:
    """Whether a part of a secret is in a text, also in base64."""
    encoded = (base64.b64encode(f"user:{PROXY}".encode()).decode(),)
    return any(part in text for part in (MARK, MARK[:-2], MARK[2:], *encoded))


@given(
    st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60), min_size=1),
    st.text(),
)
def test_noted_secrets_are_masked_however_they_are_quoted(secrets: list[str], around: str) -> None:
    """As they are, and as JSON, a shell, a URL and Python write them, beside each other and inside other text."""
    redaction.note(*secrets)
    for secret in secrets:
        forms = [secret, quote(secret, safe=""), json.dumps(secret), repr(secret), shlex.quote(secret)]
        assert secret not in redaction.redact(around.join(["", *forms, secret, ""]))


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/'\"@ "), min_size=1))
def test_the_user_of_any_url_is_masked(user: str) -> None:
    """Also where nobody has noted it, and where it has the form of an address."""
    for url in (f"http://{user}@host/x", f"https://{user}@{user}@host", f"://{user}:@host"):
        assert redaction.redact(f"no answer from {url}").endswith(("//…@host/x", "//…@host"))


def test_ordinary_words_stay() -> None:
    """A short password is masked in its URL only."""
    redaction.note("", None, "proxy")
    redaction.note_url("http://user:pw@proxy.example")
    redaction.note_url("http://proxy.example")

    assert redaction.redact("user pw at http://user:pw@proxy, a@b") == "user pw at http://…@proxy, a@b"


def test_the_newest_received_secrets_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent notes tokens for months; one that is noted again is a new one."""
    monkeypatch.setattr(redaction, "MOST", 3)
    for number in range(3):
        redaction.note_received("secret-in-use", f"secret-number-{number}")

    shown = redaction.redact("secret-in-use secret-number-2 secret-number-1 secret-number-0")
    assert shown == "… … … secret-number-0"


def test_no_registration_unmasks_what_the_operator_gave() -> None:
    """However many runners one hook registers, and whoever else notes the same value."""
    redaction.clear()
    options = state(token=f"ghp_{MARK}", dockerhub_mirror=f"https://user:{MARK}-of-mirror@mirror.example")
    Pat(options.token)
    for number in range(200):
        files = {name: base64.b64encode(f'{{"{number}": "{name}"}}'.encode()).decode() for name in sorted(REQUIRED)}
        read_configuration(base64.b64encode(json.dumps(files).encode()).decode())

    assert not shows(redaction.redact(f"{options.token} {MARK}-of-mirror"))


def test_log_records_and_their_traces_are_masked(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever logs, with arguments or an exception; arguments that do not fit stay the handler's to report."""
    redaction.install()
    redaction.note(TOKEN)
    try:
        raise ValueError(TOKEN)
    except ValueError as error:
        logging.getLogger("anybody").exception("failed: %s", error, stack_info=True)
    logging.getLogger("anybody").warning("%s and {}", {"token": TOKEN})

    assert not shows(caplog.text)
    assert "ValueError" in caplog.text
    record = logging.getLogRecordFactory()("x", logging.INFO, "", 0, "%s %s", ("one",), None)
    assert record.args == ("one",)


@pytest.mark.parametrize("library", redaction.CHATTY)
def test_libraries_log_warnings_only(library: str) -> None:
    """Each line of a hook is a process of its own, and they have one for each request."""
    logger = logging.getLogger(f"{library}.connection")
    logging.getLogger(library).setLevel(logging.NOTSET)
    redaction.install()

    assert logger.isEnabledFor(logging.WARNING)
    assert not logger.isEnabledFor(logging.INFO)


def test_what_is_printed_of_an_uncaught_exception_is_masked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ops prints it at the end of an action, and Juju shows it as the action's result."""
    monkeypatch.setattr(sys, "excepthook", lambda *found: print(*found, file=sys.stderr))
    redaction.install()
    redaction.install()
    redaction.note(TOKEN)

    sys.excepthook(ValueError, ValueError(f"failed: {TOKEN}"), None)

    shown = capsys.readouterr().err
    assert "failed: …" in shown
    assert not shows(shown)


def failures() -> dict[str, Exception]:
    """One of each kind of error that the charm knows, and of what it does not expect."""
    special = {"RateLimitError": lambda: errors.RateLimitError(WORDS, datetime.now(timezone.utc))}
    known = [
        item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.GithubRunnerError)
    ]
    made = {kind.__name__: special.get(kind.__name__, lambda kind=kind: kind(WORDS))() for kind in known}
    return {**made, "OSError": OSError(5, WORDS, TOKEN), "RuntimeError": RuntimeError(WORDS)}


class Broken(FakeGithub):
    """GitHub that gives a marked registration token, and fails where it is asked to."""

    fault: tuple[str, Exception] | None = None

    def registration_token(self, path: Any) -> str:
        super().registration_token(path)
        redaction.note(REGISTRATION)
        return REGISTRATION


def plant(world: Surroundings, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception) -> None:
    """Make one place fail with an error."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    owner: dict[str, Any] = {"github": world.github, "lxd": world.lxd, "storages": world.storages}
    owner |= {"machine": machine, "storage": pool, "policy": RepoPolicyClient, "markers": markers.Markers}
    where, _, name = place.partition(".")
    if where == "instance":
        monkeypatch.setattr(world.lxd, "fault", lambda action, _: fail() if action == name else None)
    else:
        monkeypatch.setattr(owner[where], name, fail)


PLACES = [
    *(
        "machine.take_over",
        "machine.set_up",
        "machine.lost",
        "storage.check",
        "storage.shortage",
        "policy.one_time_token",
    ),
    *("github.list_runners", "github.registration_token", "github.find_runner", "github.delete_runner"),
    *("lxd.instances", "lxd.find", "storages.list_all", "markers.note"),
    *(f"instance.{action}" for action in ("create", "start", "begin", "write", "execute", "set_config", "stop")),
]
EVENTS = ("config_changed", "start", "update_status", "upgrade_charm", "reconcile_runners", "stop")
ACTIONS = ("check-runners", "reconcile-runners", "flush-runners", "update-dependencies")


def told(found: Any, out: "testing.State | None") -> str:
    """Everything that an operator and a log store get to read of one event."""
    status = [out.unit_status.message, out.app_status.message, out.workload_version] if out else []
    return "\n".join(
        [*status, *(line.message for line in found.juju_log), str(found.action_results), *found.action_logs]
    )


def happen(found: Any, event: str, config: dict[str, Any], secrets: Sequence[testing.Secret] = ()) -> str:
    """One event or action of a unit; what was told, also where the charm ended with an exception."""
    relations = [testing.Relation("cos-agent")]
    given_state = testing.State(config=config, model=MODEL, relations=relations, secrets=secrets)
    try:
        if event == "reconcile_runners":
            with found(found.on.leader_elected(), given_state) as manager:
                manager.charm.on.reconcile_runners.emit()
                out = manager.run()
        elif event in ACTIONS:
            out = found.run(found.on.action(event), given_state)
        else:
            out = found.run(getattr(found.on, event)(), given_state)
    except testing.ActionFailed as failure:
        return told(found, failure.state) + failure.message
    except Exception:
        # Of an exception that nobody caught the log has the trace; ops prints it by the hook that is tested above.
        return told(found, None)
    return told(found, out)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with proxies that have passwords."""
    monkeypatch.setenv("JUJU_CHARM_HTTP_PROXY", PROXY_URL)
    monkeypatch.setenv("JUJU_CHARM_HTTPS_PROXY", PROXIES_URL)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")


@pytest.fixture
def charm_with_policy(world: Surroundings, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Makes contexts of a unit whose machine is set up."""
    world.github = Broken()
    monkeypatch.setattr(RepoPolicyClient, "one_time_token", lambda _: "one-time-token")
    monkeypatch.setattr(ops.Unit, "reboot", lambda _: None)
    noted(markers.SET_UP)
    return lambda: make_context(world)


@pytest.mark.usefixtures("proxied")
@pytest.mark.parametrize("place", PLACES)
def test_no_failure_shows_a_secret(
    charm_with_policy: Callable[[], Any], world: Surroundings, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Whatever fails, in any event and action, with an error of any kind that quotes every secret."""
    happen(charm_with_policy(), "config_changed", CONFIG)
    kinds = list(failures())
    for number, event in enumerate((*EVENTS, *ACTIONS)):
        error = failures()[kinds[(number * 7 + PLACES.index(place) * 3) % len(kinds)]]
        with monkeypatch.context() as patch:
            plant(world, patch, place, error)
            text = happen(charm_with_policy(), event, CONFIG)
        assert not shows(text), (event, error, text)


@pytest.mark.usefixtures("proxied")
@pytest.mark.parametrize("kind", list(failures()))
def test_no_kind_of_error_shows_a_secret(
    charm_with_policy: Callable[[], Any], world: Surroundings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of one runner, of a whole reconcile, of an action, and of the machine's set-up; the message itself is shown."""
    for place, event in (
        ("instance.start", "config_changed"),
        ("github.list_runners", "reconcile_runners"),
        ("github.list_runners", "check-runners"),
        ("machine.set_up", "start"),
    ):
        with monkeypatch.context() as patch:
            plant(world, patch, place, failures()[kind])
            text = happen(charm_with_policy(), event, CONFIG)
        assert not shows(text)
        # The library for tests does not log what nobody caught.
        assert "proxy.example" in text or kind == "RuntimeError", "the failure itself is not shown"


@pytest.mark.parametrize("place", ["github.list_runners", "instance.start", "machine.set_up"])
def test_no_failure_shows_the_key_of_an_app(
    charm_with_policy: Callable[[], Any], world: Surroundings, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Neither whole nor a line of it, however an error quotes it."""
    redaction.clear()
    secret = testing.Secret({"app-id": "Iv23liABC", "private-key": APP_KEY})
    config = {**CONFIG, "token": "", "app-secret": secret.id}
    words = f"{APP_KEY} {APP_KEY!r} {json.dumps(APP_KEY)} {shlex.quote(APP_KEY)} line {KEY_LINE}: kept"
    for number, event in enumerate((*EVENTS, *ACTIONS)):
        with monkeypatch.context() as patch:
            plant(world, patch, place, (errors.GithubApiError, errors.LxdError, errors.HostError)[number % 3](words))
            text = happen(charm_with_policy(), event, config, [secret])
        assert not shows(text), (event, text)


@pytest.mark.usefixtures("proxied")
@pytest.mark.parametrize("place", ["github.held_token", "sets.connect", "sets.delete_sets", "agent.end_sessions"])
def test_nothing_of_demand_shows_a_secret(
    charm_with_policy: Callable[[], Any],
    world: Surroundings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    place: str,
) -> None:
    """The token is in the agent's file only, which only root can read, and which goes with demand mode."""
    redaction.note(REGISTRATION)
    monkeypatch.setattr(agent_settings, "LOCKS", tmp_path)
    monkeypatch.setattr(demand, "LOCKS", tmp_path)
    monkeypatch.setattr(agent, "end_sessions", lambda _: None)
    monkeypatch.setattr(world.github, "held_token", lambda: (TOKEN, None), raising=False)
    monkeypatch.setattr(ScaleSetClient, "connect", lambda _: None)
    monkeypatch.setattr(ScaleSetClient, "delete_sets", lambda *_: [])
    path, config = agent_settings.file_of("github-runner/0"), {**CONFIG, "scaling": "demand"}
    text = happen(charm_with_policy(), "config_changed", config)
    assert TOKEN in json.loads(path.read_text())["token"]
    assert path.stat().st_mode & 0o777 == 0o600

    demand.save("github-runner/0", {"default": Demand(assigned=1, answered_at=world.now(), scale_set=7)})
    owner, _, name = place.partition(".")

    def fail(*_: Any) -> Any:
        raise errors.GithubApiError(WORDS)

    monkeypatch.setattr({"github": world.github, "sets": ScaleSetClient, "agent": agent}[owner], name, fail)
    text += happen(charm_with_policy(), "reconcile_runners", config)
    text += happen(charm_with_policy(), "config_changed", CONFIG)
    text += happen(charm_with_policy(), "stop", CONFIG)

    assert not shows(text), text
    assert not path.exists()


@pytest.mark.parametrize("key", [APP_KEY.replace("RSA", "OPENSSH"), KEY_LINE, APP_KEY * 2])
def test_no_rejected_secret_of_an_app_shows_its_key(charm_with_policy: Callable[[], Any], key: str) -> None:
    """A key of another form is named by its option only."""
    secret = testing.Secret({"app-id": "Iv23liABC", "private-key": key})
    for event in ("config_changed", "reconcile-runners"):
        text = happen(charm_with_policy(), event, {**CONFIG, "app-secret": secret.id}, [secret])
        assert not shows(text), text
        assert "app-secret: private-key is not" in text


INVALID = {
    "token": f"{TOKEN} {TOKEN}",
    "path": f"https://{PROXY}@github.com/octo-org/demo",
    "github-url": f"https://user:{PROXY}@github.example.com/x",
    "image-source": f"https://user:{PROXY}@images.example x",
    "cached-actions": f"https://user:{PROXY}@github.com/actions/checkout@v5",
    "dockerhub-mirror": f"ftp://user:{PROXY}@mirror.example",
    "repo-policy-compliance-url": f"https://user:{PROXY}@policy.example",
    "repo-policy-compliance-token": f"{POLICY} {POLICY}",
    "image-script": f"echo {TOKEN}",
    "pre-job-script": f"export TOKEN={TOKEN}",
    "runner-http-proxy": f"socks5://user:{PROXY}@runners.example",
    "ca-certificates": f"-----BEGIN PRIVATE KEY-----\n{MARK}\n-----END PRIVATE KEY-----\n",
}
INVALID_PROXIES = (f"socks5://user:{PROXY}@proxy.example", f"user:{PROXY}@proxy.example:3128", f"http://user:{PROXY}@")


@pytest.mark.parametrize("option", [*INVALID, *INVALID_PROXIES, "juju-no-proxy"])
def test_no_rejected_value_shows_a_secret(
    charm_with_policy: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """The reason for which a value is refused does not quote what it has of a secret."""
    if option == "juju-no-proxy":
        monkeypatch.setenv("JUJU_CHARM_HTTP_PROXY", "http://proxy.example:3128")
        monkeypatch.setenv("JUJU_CHARM_NO_PROXY", f"user:{PROXY}@proxy.example,localhost")
    elif option in INVALID_PROXIES:
        monkeypatch.setenv("JUJU_CHARM_HTTP_PROXY", option)
    config = {**CONFIG, **({option: INVALID[option]} if option in INVALID else {})}

    for event in ("config_changed", "reconcile-runners"):
        text = happen(charm_with_policy(), event, config)
        assert not shows(text), text
        assert (option if option in INVALID else "proxy") in text


class Telling:
    """An instance whose listener has said one line."""

    name = "one"

    def __init__(self, line: str) -> None:
        self.line = line

    def output(self, *_: Any) -> bytes:
        return self.line.encode()


def of_github(text: str) -> str:
    """What is shown of GitHub's message."""
    request = httpx2.Request("GET", "https://github.example")
    return str(gh.errors.detail(httpx2.Response(418, json={"message": text}, request=request)))


CUTTERS: dict[str, tuple[int, Callable[[str], str]]] = {
    "a listener's last words": (probe.WORDS_LIMIT, lambda text: probe.last_line(cast("LxdInstance", Telling(text)))),
    "a text of the scale set service": (TEXT_LIMIT, lambda text: scale_set_answers.text({"name": text}, "name")),
    "a rejected value": (option_values.SHOWN_LIMIT, option_values.shortened),
    "the name of a job": (listing.JOB_NAME_LIMIT, lambda text: listing.printable(text, listing.JOB_NAME_LIMIT)),
    "GitHub's message": (gh.errors.MESSAGE_LIMIT, of_github),
    "a line": (100, lambda text: redaction.line(text, 100)),
    "the last words of a program": (500, lambda text: redaction.tail(text[::-1])),
}


@pytest.mark.parametrize(
    ("text", "shown"), [("a\nb\x1b[0m  c\t", "a b [0m c"), ("", ""), ("größe × 2, ラベル", "größe × 2, ラベル")]
)
def test_any_text_becomes_one_printable_line(text: str, shown: str) -> None:
    """What other programs print is shown and recorded without line breaks and control characters."""
    assert redaction.line(text) == shown


@pytest.mark.parametrize("which", list(CUTTERS))
def test_a_secret_is_masked_before_the_text_is_cut(which: str) -> None:
    """Wherever the cut falls: what is left of a secret could not be recognised any more."""
    redaction.clear()
    limit, cut = CUTTERS[which]
    secret = f"{MARK}-secret-that-is-long"
    redaction.note(secret, secret[::-1])
    for place in range(limit - len(secret), limit + 1):
        shown = cut("x" * place + secret + "y" * limit)
        assert MARK[:3] not in shown, (place, shown)
        assert MARK[:3][::-1] not in shown, (place, shown)
        assert "xxx" in shown or "yyy" in shown
    # A program's output starts in the middle of a URL.
    assert MARK not in cut(f"{'x' * (limit - 12)}//user:{MARK}@{'y' * 20}")
