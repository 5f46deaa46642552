"""The health probe: what runs inside an instance.

Only exit codes and bounded output are read: a job may have replaced every program inside.
"""

import logging
import re
from contextlib import suppress

import provision
from engine.instance import LxdInstance
from errors import LxdError
from naming import CREATED_KEY
from redaction import line
from runner_view import Process

logger = logging.getLogger(__name__)

WORDS_LIMIT = 300

# Exit codes of the scripts below. Any other exit code means Process.UNKNOWN.
PROBE = {0: Process.WORKER, 10: Process.RUNNING, 11: Process.NONE, 12: Process.DEPRECATED, 13: Process.FAILED}
PROBE_SCRIPT = (
    # By name, and by path for a worker that was started by another program. An update of the agent renames bin.
    "{ pgrep -x 'Runner[.]Worker' || pgrep -f 'bin[^/ ]*/Runner[.]Worker'; } > /dev/null && exit 0; "
    f"[ -e {provision.DEPRECATED_FILE} ] && exit 12; [ -e {provision.FAILED_FILE} ] && exit 13; "
    f"systemctl --quiet is-active {provision.SERVICE} && exit 10; exit 11"
)
# The previous charm starts the runner agent without a systemd unit.
PREVIOUS_PROBE_SCRIPT = (
    "pgrep -f 'bin/Runner[.]Worker' > /dev/null && exit 0; "
    "pgrep -f 'bin/Runner[.]Listener' > /dev/null && exit 10; exit 11"
)
# Lines that run.sh prints after the end of the listener, and that do not tell the reason.
RUN_SCRIPT_WORDS = re.compile(r"Exiting runner\.\.\.|Runner listener exit with (terminated|Session Conflict) error")


def probe(instance: LxdInstance) -> Process:
    """What runs inside: a job, only the runner agent, or neither; UNKNOWN if the probe cannot be run."""
    script = PREVIOUS_PROBE_SCRIPT if is_previous(instance) else PROBE_SCRIPT
    try:
        # Recorded output has no limit of size, an exit code needs none.
        done = instance.execute(["/bin/sh", "-c", script], timeout=15)
    except LxdError as error:
        logger.warning("The health probe of %s failed: %s", instance.name, error)
        return Process.UNKNOWN
    return PROBE.get(done.code, Process.UNKNOWN)


def is_previous(instance: LxdInstance) -> bool:
    """Whether an instance lacks the key that every version of this charm sets when it creates one.

    Other keys prove nothing: ``offline-since`` is written to instances of the previous charm as well.
    """
    return CREATED_KEY not in instance.config


def last_line(instance: LxdInstance) -> str:
    """The last line that the listener of a runner agent printed; empty if it cannot be read.

    At most ``WORDS_LIMIT`` printable characters, without secrets. A job that ran inside may have faked them.
    """
    command = f"journalctl --identifier={provision.RUNNER_SCRIPT.name} --output=cat --lines=20 2> /dev/null"
    try:
        lines = instance.output(["/bin/sh", "-c", f"exec {command}"], 16384, 20).decode(errors="replace").splitlines()
    except LxdError as error:
        logger.warning("The output of the runner agent of %s cannot be read: %s", instance.name, error)
        return ""
    found = [each for each in lines if each.strip() and not RUN_SCRIPT_WORDS.match(each)]
    return line(found[-1], WORDS_LIMIT) if found else ""


def in_pre_job(instance: LxdInstance) -> bool:
    """Whether the pre-job script runs inside; False if that cannot be found out."""
    with suppress(LxdError):
        return instance.execute(["pgrep", "-f", str(provision.PRE_JOB_SCRIPT)], timeout=15).code == 0
    return False
