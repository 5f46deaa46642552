"""The unit's Prometheus metrics over HTTP, and the alert rules by promtool and by a real Prometheus."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import demand
import telemetry
import waiting
from demand import Demand
from naming import Identity
from programs import agent as agent_program
from programs import exposition
from programs.exposition import Exposition, Figures
from telemetry import FAILURE, Counts, Delay, Gauges, Measurement
from tests.support.deployment import wait_for
from tests.support.prometheus import program

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "src/prometheus_alert_rules/runners.yaml"
DASHBOARD = ROOT / "src/grafana_dashboards/github_runner_prometheus.json"
UNIT = "github-runner/0"
SMALL = f'flavor="small",unit="{UNIT}"'
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of what the reconciles leave for the agent."""
    monkeypatch.setattr(telemetry, "LOCKS", tmp_path)
    monkeypatch.setattr(demand, "LOCKS", tmp_path)


@pytest.fixture
def served() -> Iterator[Exposition]:
    """The metrics of a unit, at a free port."""
    found = exposition.serve(0, Figures(UNIT, "1.2.3"))
    assert found
    yield found
    found.close()


def text_of(url: str) -> str:
    with OPENER.open(url, timeout=10) as reply:
        text: str = reply.read().decode()
    return text


def scrape(served: Exposition) -> dict[str, float]:
    """The value of each series."""
    lines = text_of(f"http://127.0.0.1:{served.port}/metrics").splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def record(now: float = 1_700_000_000.0) -> None:
    """Everything that can be recorded, for one flavour."""
    room = Delay(telemetry.MEMORY, 2, "8GiB each, 1GiB free")
    counts = Counts(3, 1, 2, 0, starting=1, wanted=6, maximum=6, delays=(room,))
    telemetry.save(UNIT, Gauges(now, {"small": counts}, 4000, now - 60, now - 120))
    demand.save(UNIT, {"small": Demand(assigned=6, missed=1, answered_at=time.time(), running=2)})
    durations = (Measurement(name, "small", 7.0) for name in telemetry.DURATIONS)
    telemetry.measure(UNIT, *durations, Measurement(FAILURE, "small", step="registering"))


def test_figures_of_a_reconcile_are_served(served: Exposition) -> None:
    """The gauges are those of the last reconcile and of demand: waiting jobs are those that no runner has begun."""
    record()
    found = scrape(served)

    states = {
        state: found[f'github_runner_runners{{flavor="small",state="{state}",unit="{UNIT}"}}']
        for state in ("idle", "starting", "busy", "other")
    }
    assert states == {"idle": 1, "starting": 1, "busy": 2, "other": 0}
    assert found[f"github_runner_wanted_runners{{{SMALL}}}"] == 3
    assert found[f"github_runner_assigned_jobs{{{SMALL}}}"] == 6
    assert found[f'github_runner_api_quota_requests{{unit="{UNIT}"}}'] == 4000
    assert found[f'github_runner_last_reconcile_timestamp_seconds{{unit="{UNIT}"}}'] == 1_700_000_000
    assert found[f'github_runner_build_info{{unit="{UNIT}",version="1.2.3"}}'] == 1


def test_what_waits_is_told_by_reason(served: Exposition) -> None:
    """Waiting jobs and missing runners have a series for each reason, and those of a flavour add up to their number."""
    record()
    found = scrape(served)

    def by_reason(name: str) -> dict[str, float]:
        series = {reason: f'{name}{{flavor="small",reason="{reason}",unit="{UNIT}"}}' for reason in waiting.REASONS}
        return {reason: found[key] for reason, key in series.items() if found[key]}

    # Seven jobs are more than the maximum by one. The idle runner and the one that starts are for two of the others.
    assert by_reason("github_runner_waiting_jobs") == {"not_assigned": 1, "starting": 1, "maximum": 1, "memory": 2}
    assert by_reason("github_runner_missing_runners") == {"memory": 2}


def test_measurements_add_up(served: Exposition) -> None:
    """A histogram has every measurement once, over several scrapes."""
    record()
    scrape(served)
    telemetry.measure(UNIT, Measurement("creation", "small", 50.0))
    found = scrape(served)

    assert found[f"github_runner_creation_duration_seconds_count{{{SMALL}}}"] == 2
    assert found[f"github_runner_creation_duration_seconds_sum{{{SMALL}}}"] == 57
    assert found[f'github_runner_creation_duration_seconds_bucket{{flavor="small",le="10.0",unit="{UNIT}"}}'] == 1
    assert found[f'github_runner_creation_failures_total{{flavor="small",step="registering",unit="{UNIT}"}}'] == 1


def test_labels_have_a_bound(served: Exposition, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that no creation has, and flavours beyond the bound, are counted as other."""
    monkeypatch.setattr(exposition, "MOST_FLAVORS", 2)
    telemetry.measure(UNIT, *(Measurement(FAILURE, f"f{number}", step=f"step {number}") for number in range(9)))

    failures = {name for name in scrape(served) if name.startswith("github_runner_creation_failures_total")}
    assert {tuple(re.findall(r'(?:flavor|step)="([^"]*)"', name)) for name in failures} == {
        ("f0", "other"),
        ("f1", "other"),
        ("other", "other"),
    }


def test_without_figures_there_is_the_build(served: Exposition) -> None:
    """Before the first reconcile, and with damaged files, the metrics are served with what is known."""
    telemetry.gauges_path(UNIT).write_text("{")
    telemetry.measurements_path(UNIT).write_bytes(b"\xff\n")

    assert list(scrape(served)) == [f'github_runner_build_info{{unit="{UNIT}",version="1.2.3"}}']


def test_only_the_loopback_listens(served: Exposition) -> None:
    """The server listens at 127.0.0.1, where no runner and no other machine reaches it."""
    text_of(f"http://127.0.0.1:{served.port}/metrics")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", served.port), timeout=10)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Starts what the agent runs, at a port; it is stopped at the end."""
    monkeypatch.setattr(exposition, "PAUSE", 0.02)
    stop, threads = threading.Event(), []

    def start(port: int) -> None:
        thread = threading.Thread(target=exposition.keep_serving, args=(port, Figures(UNIT, "1"), stop))
        thread.start()
        threads.append(thread)

    yield start
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def answers(port: int) -> bool:
    try:
        return "github_runner_build_info" in text_of(f"http://127.0.0.1:{port}/metrics")
    except urllib.error.URLError:
        return False


def test_a_taken_port_is_a_notice_and_tried_again(agent: Callable[[int], None]) -> None:
    """The reason is there for the status until the port is free; then the metrics are served and the reason goes."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        agent(port)
        wait_for(lambda: telemetry.problem(UNIT), "the reason")
        assert telemetry.problem(UNIT) == (
            f"metrics-port: {port} of 127.0.0.1 cannot be used: Address already in use; set another one"
        )

    wait_for(lambda: answers(port), "the metrics")
    wait_for(lambda: not telemetry.problem(UNIT), "the end of the reason")


def test_measurements_are_taken_without_a_prometheus(agent: Callable[[int], None]) -> None:
    """The file of measurements stays small where nobody scrapes."""
    record()
    agent(free_port())

    wait_for(lambda: telemetry.measurements_path(UNIT).stat().st_size == 0, "an empty file")


@pytest.mark.parametrize("has_port", [True, False])
def test_the_agent_serves_while_it_runs(has_port: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics are there while the agent does its other work and not after it; without a port they never are."""
    port = free_port()
    seen: list[bool] = []

    class Sessions:
        """Ends as soon as the metrics are there."""

        def __init__(self, *_: Any) -> None:
            self.stop = threading.Event()

        def run(self) -> None:
            if has_port:
                wait_for(lambda: answers(port), "the metrics")
            seen.append(answers(port))
            self.stop.set()

    identity = Identity("github-runner", 0, "0123abcd")
    monkeypatch.setattr(agent_program, "Sessions", Sessions)
    monkeypatch.setattr("programs.agent.settings.load", lambda _: SimpleNamespace(identity=identity))
    monkeypatch.setattr("programs.agent.signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["agent", "--unit", UNIT, *(["--metrics-port", str(port)] if has_port else [])])

    assert agent_program.main() == 0
    assert seen == [has_port]
    assert not answers(port)


def test_the_end_frees_the_port() -> None:
    """After `close` nobody listens."""
    served = exposition.serve(0, Figures(UNIT, "1"))
    assert served
    served.close()

    assert not answers(served.port)


def test_series_begin_at_zero(served: Exposition) -> None:
    """A flavour has its histograms and counters before the first measurement, so that the first one is an increase."""
    telemetry.save(UNIT, Gauges(1.0, {"small": Counts(1)}))
    found = scrape(served)

    assert found[f"github_runner_creation_duration_seconds_count{{{SMALL}}}"] == 0
    assert found[f'github_runner_creation_failures_total{{flavor="small",step="registering",unit="{UNIT}"}}'] == 0


def test_promtool_finds_no_fault(served: Exposition) -> None:
    """Names, units and help follow Prometheus' conventions."""
    record()
    text = text_of(f"http://127.0.0.1:{served.port}/metrics")
    done = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_promtool_reads_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    """Each query is PromQL, with an interval and any values in the place of Grafana's variables."""
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    rules = [
        {"record": f"query:{number}", "expr": re.sub(r"\$\w+", ".*", query.replace("$__rate_interval", "5m"))}
        for number, query in enumerate(queries)
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([program("promtool"), "check", "rules", str(path)], capture_output=True, text=True)

    assert len(queries) > 20
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_about_metrics_that_there_are(served: Exposition) -> None:
    """Each metric of a rule is served, and promtool accepts the rules."""
    record()
    served_names = {name.partition("{")[0] for name in scrape(served)}
    used = set(re.findall(r"github_runner_\w+", RULES.read_text()))

    assert used <= served_names
    subprocess.run([program("promtool"), "check", "rules", str(RULES)], check=True, capture_output=True)


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    text = ",".join(f'{key}="{value}"' for key, value in {"unit": UNIT, **labels}.items())
    return {"series": f"{name}{{{text}}}", "values": values}


def failures(values: str) -> dict[str, str]:
    return series("github_runner_creation_failures_total", values, flavor="small", step="registering")


def queue(waited: int) -> list[dict[str, str]]:
    """The buckets that the unit serves, of jobs that all waited so many seconds."""
    name, limits = "github_runner_queue_duration_seconds_bucket", (*exposition.BUCKETS["queue"], float("inf"))
    return [
        series(name, "0+1x600" if waited <= limit else "0x600", flavor="small", le=str(limit).replace("inf", "+Inf"))
        for limit in limits
    ]


def runners(idle: int, wanted: int, starting: int = 0) -> list[dict[str, str]]:
    return [
        series("github_runner_runners", f"{starting}x600", flavor="small", state="starting"),
        series("github_runner_runners", f"{idle}x600", flavor="small", state="idle"),
        series("github_runner_runners", "5x600", flavor="small", state="other"),
        series("github_runner_wanted_runners", f"{wanted}x600", flavor="small"),
    ]


def up(values: str, job: str = "app_github-runner-metrics") -> dict[str, str]:
    return {"series": f'up{{job="{job}"}}', "values": values}


MADE = series("github_runner_creation_duration_seconds_count", "0+1x600", flavor="small")
# Series of a minute each, and whether the alert fires after five hours.
CASES: list[tuple[str, list[dict[str, str]], bool]] = [
    ("GithubRunnerReconcileMissing", [series("github_runner_last_reconcile_timestamp_seconds", "0x600")], True),
    ("GithubRunnerReconcileMissing", [series("github_runner_last_reconcile_timestamp_seconds", "0+60x600")], False),
    ("GithubRunnerNoneOnline", runners(idle=0, wanted=2), True),
    ("GithubRunnerNoneOnline", runners(idle=1, wanted=2), False),
    ("GithubRunnerNoneOnline", runners(idle=0, wanted=0), False),
    ("GithubRunnerNoneOnline", runners(idle=0, wanted=2, starting=1), False),
    ("GithubRunnerCreationFailing", [failures("0+1x600")], True),
    ("GithubRunnerCreationFailing", [failures("0+1x600"), MADE], False),
    ("GithubRunnerCreationFailing", [failures("1x600")], False),
    ("GithubRunnerQueueTimeHigh", queue(1201), True),
    ("GithubRunnerQueueTimeHigh", queue(1199), False),
    ("GithubRunnerFilesOld", [series("github_runner_image_timestamp_seconds", "-300000x600")], True),
    ("GithubRunnerFilesOld", [series("github_runner_binary_timestamp_seconds", "-300000x600")], True),
    ("GithubRunnerFilesOld", [series("github_runner_image_timestamp_seconds", "0x600")], False),
    ("GithubRunnerQuotaLow", [series("github_runner_api_quota_requests", "499x600")], True),
    ("GithubRunnerQuotaLow", [series("github_runner_api_quota_requests", "500x600")], False),
    ("GithubRunnerMetricsMissing", [up("0x600")], True),
    ("GithubRunnerMetricsMissing", [up("0x600", job="github-runner-metrics")], True),
    ("GithubRunnerMetricsMissing", [up("1x270")], True),
    ("GithubRunnerMetricsMissing", [up("1x600")], False),
    ("GithubRunnerMetricsMissing", [up("1x120")], False),
    ("GithubRunnerMetricsMissing", [up("0x600", job="node")], False),
]


@pytest.mark.parametrize(("alert", "given", "fires"), CASES)
def test_when_a_rule_fires(alert: str, given: list[dict[str, str]], fires: bool, tmp_path: Path) -> None:
    """Each rule fires for what it is about, and not for the usual state."""
    [rule] = [rule for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"] if rule["alert"] == alert]
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        yaml.safe_dump(
            {"groups": [{"name": "one", "rules": [{**rule, "expr": f"count({rule['expr']})", "annotations": {}}]}]}
        )
    )
    wanted = [{"exp_labels": {"severity": rule["labels"]["severity"]}}] if fires else []
    test = {
        "interval": "1m",
        "input_series": given,
        "alert_rule_test": [{"eval_time": "5h", "alertname": alert, "exp_alerts": wanted}],
    }
    cases = tmp_path / "cases.yaml"
    cases.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": [test]}))
    done = subprocess.run([program("promtool"), "test", "rules", str(cases)], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", ["0x600", "1x270"])
def test_the_alert_about_missing_metrics_names_the_unit(values: str, tmp_path: Path) -> None:
    """Series of a scrape have a collector's `juju_unit` and no `unit`: the alert has it as `unit`, like all others."""
    name = "GithubRunnerMetricsMissing"
    [rule] = [rule for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"] if rule["alert"] == name]
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [{**rule, "annotations": {}}]}]}))
    labels = {"job": "app_github-runner-metrics", "juju_unit": UNIT}
    given = {"series": f'up{{job="{labels["job"]}",juju_unit="{UNIT}"}}', "values": values}
    wanted = [{"exp_labels": {"severity": "warning", "unit": UNIT, **labels}}]
    test = {
        "interval": "1m",
        "input_series": [given],
        "alert_rule_test": [{"eval_time": "5h", "alertname": name, "exp_alerts": wanted}],
    }
    cases = tmp_path / "cases.yaml"
    cases.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": [test]}))
    done = subprocess.run([program("promtool"), "test", "rules", str(cases)], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_both_cases() -> None:
    """There is no rule without a case in which it fires and one in which it does not."""
    alerts = {rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}

    assert {(alert, fires) for alert, _, fires in CASES} == {
        (alert, fires) for alert in alerts for fires in (True, False)
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def alerts_of(port: int, process: "subprocess.Popen[bytes]") -> list[dict[str, Any]]:
    """The firing alerts of a Prometheus; those of a server that does not answer yet are none."""
    assert process.poll() is None, "Prometheus ended"
    try:
        found = json.loads(text_of(f"http://127.0.0.1:{port}/api/v1/alerts"))
    except (OSError, ValueError):
        return []
    return [alert for alert in found["data"]["alerts"] if alert["state"] == "firing"]


def test_a_prometheus_scrapes_and_fires(served: Exposition, tmp_path: Path) -> None:
    """Prometheus of the distribution takes the rules, scrapes the unit and fires for a reconcile that is long ago."""
    record(time.time() - 3 * 3600)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "unit", "static_configs": [{"targets": [f"127.0.0.1:{served.port}"]}]},
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        program("prometheus"),
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            end = time.monotonic() + 60
            while not (found := alerts_of(port, process)) and time.monotonic() < end:
                time.sleep(0.2)  # a server of somebody else's, which tells nobody when it is ready
        finally:
            process.terminate()

    [alert] = found
    assert alert["labels"]["alertname"] == "GithubRunnerReconcileMissing"
    assert alert["labels"]["unit"] == UNIT
