"""The page of figures: docs/reference/reliability.md, made of the JSON beside it."""

import json
import textwrap
from pathlib import Path

ABOUT = {
    "kill": (
        "Killed anywhere",
        "A reconcile that removes a dead runner, replaces an outdated one, writes the metrics of two finished jobs and "
        "makes three runners is killed (SIGKILL) before each request to LXD and GitHub, after each answer, and before "
        "each file and mount of the metrics and below /run. The next reconcile must bring the wanted number of "
        "runners, with no instance, registration, mount, image file or profile left over, and no event missing. "
        "A boundary that the repeated reconcile does not reach is not killed.",
    ),
    "kill-demand": (
        "Killed anywhere, with scaling=demand",
        "The same with two flavours, while jobs wait for a runner. The unit's agent is killed as well: before each "
        "of its requests to GitHub, after each answer, and before each of its files. Meanwhile its sessions and tokens "
        "end, a runner scale set vanishes, and jobs of both flavours arrive. After the next start each flavour must "
        "have its number of runners and one scale set, each job must have run once, and nothing may be left over.",
    ),
    "combinations": (
        "GitHub misbehaves",
        "Each question that the charm or its agent asks GitHub, with each injected fault of an answer: refusals, rate "
        "limits, outages, silence, drips, resets, half answers, other content, lists that are empty or shift while "
        "they are read, answers without end. Each must give the right status in bounded time and with the right number "
        "of requests, and cost no healthy runner. The agent must go on after each.",
    ),
    "churn": (
        "Jobs all the time",
        "A queue of jobs that is never empty, three runners on a real LXD, replaced as they end. Each job must run "
        "once, and its two events must be in the metrics log. Meanwhile runner agents update themselves, listeners are "
        "killed, whose jobs fail or are cancelled, and GitHub refuses the newest version for a moment. A job whose "
        "listener is killed may have run its command before: it counts in both rows.",
    ),
    "churn-demand": (
        "Jobs all the time, with scaling=demand",
        "The same through a runner scale set, with up to three runners of which one waits for jobs. In addition, the "
        "unit's agent is killed, its sessions and tokens end, and GitHub's queue of messages is silent, resets "
        "connections or answers 503 for 5 seconds. Sessions end 5 seconds after their last request, instead of 50.",
    ),
    "attacks": (
        "Hostile jobs",
        "One attack after another by jobs of a real unit (`tests/faults/attacks.py`), beside a job that runs through "
        "all of it. An attack has held if what the row says was seen, and an ordinary job and all runners followed. "
        "Times that would take hours are set forward.",
    ),
    "attacks-demand": (
        "Hostile jobs, with scaling=demand",
        "The same attacks, by jobs that come through a runner scale set. Its four runners wait for jobs.",
    ),
    "vm-long": (
        "Virtual machines at length",
        "The last result of each test of `make vm-long` on two cores, which starts real virtual machines in software "
        "emulation; see [Virtual machines](virtual-machines.md).",
    ),
    "soak": (
        "A month in simulation",
        "The real reconciles over a simulated LXD and GitHub: jobs, crashes, reboots, outages and changed options at "
        "random, thousands of other runners in the same organisation. Memory and open files must stay level.",
    ),
    "soak-demand": (
        "A month in demand mode",
        "The same with `scaling=demand`: two flavours share a budget that is smaller than their maxima, jobs ask for "
        "one of them, sessions are lost for hours, and changed labels make other runner scale sets. In the first "
        "minutes after the timer's reconcile the agent starts others. No reconcile exceeds the budget or a maximum.",
    ),
    "model": (
        "Random steps",
        "Stories of a unit, each of random steps in any order: jobs, lost runners, killed reconciles, reboots, clocks "
        "that are set back, changed options, an LXD and a GitHub that fail, an agent that is silent. A rule that a "
        "story breaks ends the run (`tests/support/reconciles.py`, `demands.py`).",
    ),
    "fuzz": (
        "Hostile metrics",
        "Everything that a runner can put into its metrics folder: random bytes, broken JSON, links, pipes, sockets, "
        "folders, huge and sparse files. Nothing is followed, nothing blocks, nothing outside is written, and no line "
        "of a log is forged.",
    ),
    "mutation": (
        "Mutations of the plan",
        "Each rule of `src/plan.py` is broken in turn; a test must notice.",
    ),
    "mutations": (
        "A sample of mutations",
        "A sample of small changes of `src/` without `host/`, at most one at each place. A test of `make unit` or "
        "`make adapters` must notice each; those that no test noticed are listed.",
    ),
}
HEAD = """# Reliability in figures

What `make faults` and `make vm-long` measured, at length; a sample is part of `make test` and `make vm`. The promises
behind them are in [SECURITY.md](../../SECURITY.md), what an operator sees of each failure in [Failures](failures.md).
This page is written by the runs, as are the [figures in JSON](reliability.json). Not all runs are of the same day, and
the code has changed since some of them: each section says when its figures were taken, and later ones of which commit.
"""


def page(figures: dict[str, dict[str, object]]) -> str:
    """The page; ``figures`` by the name of the run."""
    return "\n".join([HEAD, *(_section(*ABOUT[name], figures[name]) for name in ABOUT if name in figures)])


def _section(title: str, about: str, figures: dict[str, object]) -> str:
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {_words(value)} |"
        for name, value in figures.items()
        if name not in ("date", "minutes", "commit")
    )
    words = textwrap.fill(f"{about}{_taken(figures)}", 120, break_on_hyphens=False)
    return f"## {title}\n\n{words}\n\n| figure | value |\n| --- | ---: |\n{rows}\n"


def _taken(figures: dict[str, object]) -> str:
    """When the figures were taken, and of which code if that was recorded."""
    if "date" not in figures:
        return ""
    code = f" of commit {figures['commit']}" if "commit" in figures else ""
    return f" Taken on {figures['date']}{code} in {figures['minutes']} minutes on two cores."


def _words(value: object) -> str:
    if isinstance(value, (dict, list)):
        shown = "<br>".join(map(str, value.items() if isinstance(value, dict) else value))
        return shown.replace("|", "\\|") or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(name: str, figures: dict[str, object], folder: Path) -> None:
    """Keep the figures of a run, in JSON and on the page, in the place of those of the run before."""
    source = folder / "reliability.json"
    known = json.loads(source.read_text()) if source.exists() else {}
    known[name] = figures
    source.write_text(json.dumps(known, indent=2) + "\n")
    (folder / "reliability.md").write_text(page(known))


def update(name: str, figures: dict[str, object], folder: Path) -> None:
    """Keep some figures of a run; its others stay."""
    known = json.loads((folder / "reliability.json").read_text())
    write(name, {**known.get(name, {}), **figures}, folder)
