"""Every small change of `plan` must make a test of tests/unit/test_plan.py fail: mutation testing, with cosmic-ray."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODULE = "plan"
# What the tests import, and nothing else: they must fail for the module's change alone.
FILES = (f"src/{MODULE}.py", "src/models.py", f"tests/unit/test_{MODULE}.py")
SAMPLE = 20
# Members of an enumeration are equal if they are the same: no test can tell these two, and cosmic-ray knows of `None`.
EQUIVALENT = "core/ReplaceComparisonOperator_Is_Eq"
TIMEOUT = 60.0


def run(short: bool) -> dict[str, object]:
    """Change, test and count; in short every 20th change only. ``score`` is a percentage, killed of mutants."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in FILES:
            shutil.copy(ROOT / file, folder)
        tests = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"test_{MODULE}.py"]
        settings = {"module-path": f"{MODULE}.py", "timeout": TIMEOUT, "test-command": " ".join(tests)}
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        (folder / "settings.toml").write_text(
            "\n".join(["[cosmic-ray]", *lines, "excluded-modules = []", "[cosmic-ray.distributor]", 'name = "local"\n'])
        )
        _cosmic_ray(folder, "init", "settings.toml", "session.sqlite")
        # Tests that fail anyway would kill everything.
        _cosmic_ray(folder, "baseline", "settings.toml")
        equivalent = _skip(folder / "session.sqlite", SAMPLE if short else 1)
        _cosmic_ray(folder, "exec", "settings.toml", "session.sqlite")
        return {**_figures(folder), "equivalent": equivalent}


def _cosmic_ray(folder: Path, *arguments: str) -> str:
    # Bytecode of one mutant would be taken for the next one's of the same second and size. Hypothesis draws the same
    # examples where CI is set, and only what lies in the folder may be imported.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "CI": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-m", "cosmic_ray.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cosmic-ray {arguments[0]} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def _skip(session: Path, step: int) -> int:
    """Leave out what is equivalent, and of the others all but every such one; how many were equivalent."""
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    with use_db(str(session), WorkDB.Mode.open) as work:
        items = sorted(work.pending_work_items, key=lambda item: (item.mutations[0].start_pos, str(item.mutations[0])))
        equivalent = [item for item in items if item.mutations[0].operator_name == EQUIVALENT]
        others = [item for item in items if item not in equivalent]
        skipped = [item for number, item in enumerate(others) if number % step]
        for item in equivalent + skipped:
            work.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED))
    return len(equivalent)


def _figures(folder: Path) -> dict[str, object]:
    answer = _cosmic_ray(folder, "dump", "session.sqlite")
    pairs: list[list[dict[str, Any]]] = [json.loads(line) for line in answer.splitlines()]
    tested = [(item["mutations"][0], result) for item, result in pairs if result["worker_outcome"] != "skipped"]
    survived = [_describe(change, result) for change, result in tested if result["test_outcome"] == "survived"]
    killed = len(tested) - len(survived)
    score = round(100 * killed / len(tested), 1)
    return {"mutants": len(tested), "killed": killed, "survived": survived, "score": score}


def _describe(change: dict[str, Any], result: dict[str, Any]) -> str:
    """The line's number and text, as it was changed."""
    lines = result["diff"].splitlines()
    added = [line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++")]
    text = " / ".join(added) or change["operator_name"]
    return f"{MODULE}.py:{change['start_pos'][0]}: {text}"
