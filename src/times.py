"""The time limits that must agree with one another, in seconds. A limit that concerns one place only stands there.

A creation within its limits is never judged stale, and a reconcile is never ended while one creation may still go on.
"""

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# One creation, step by step.
CREATE_INSTANCE = 5 * MINUTE
# Until an instance takes its first command: a virtual machine boots and starts its agent. A container: seconds.
READY = {"virtual-machine": 5 * MINUTE, "container": MINUTE}
SET_UP_INSTANCE = 10 * MINUTE
REGISTER = 2 * MINUTE
START_AGENT = 30
# A runner agent that is stopped interrupts the step of its job (7.5 s), terminates it (2.5 s), waits for the step's
# output (10 s) and reports the job. LXD waits longer than systemd in the instance, and only then stops it by force.
STOP_AGENT = 45
STOP_INSTANCE = 60
# For the requests to LXD and GitHub between the steps.
BETWEEN_STEPS = 5 * MINUTE
CREATION = CREATE_INSTANCE + READY["virtual-machine"] + SET_UP_INSTANCE + REGISTER + START_AGENT + BETWEEN_STEPS

# How long a runner may take to come online once its creation has ended. Until then, and during its creation, it is
# starting.
COME_ONLINE = 10 * MINUTE
# A runner that GitHub has not listed as online for this long is unhealthy.
OFFLINE = 15 * MINUTE
# The same for an instance that does not answer the health probe.
SILENT = HOUR
# The same for an instance in which a worker runs although GitHub lists the runner neither as online nor as busy: a job
# can fake a worker. GitHub gives a job up within minutes once its runner is lost
# (https://docs.github.com/en/actions/reference/limits).
UNKNOWN_JOB = 6 * HOUR

# For how long after its creation a runner's report counts that its agent has ended without a job. If the runner has had
# a job, GitHub still lists it as busy: it gives a job up 10 minutes after the runner's last message.
REPORT_COUNTS = 8 * MINUTE
# After its creation, GitHub may not yet find a runner by its id for this long.
SETTLED = MINUTE
# From the end of a job to the end of its instance.
POWER_OFF = 5
# How long a reconcile waits for the first runner of a changed configuration to come online before it goes on without.
PROOF = 2 * MINUTE
# For how long reconciles in demand mode do without GitHub's list of runners after one that has read it.
LIST_OF_RUNNERS = 5 * MINUTE
# How long a reconcile waits for another process that works on this unit's runners.
LOCK = MINUTE
# For all questions of a reconcile about the jobs of finished runners. A job chooses what they take: it names its run.
JOB_LOOK_UPS = MINUTE
# For how long the list of runner binaries counts as current.
BINARY_LIST = HOUR
# What a reconcile does besides creating: it observes, removes, repairs the machine, and waits for LXD and GitHub.
REST_OF_RECONCILE = 10 * MINUTE

# How long apt waits for another process that holds one of apt's or dpkg's locks.
APT_LOCK = 10 * MINUTE
# After a reboot was requested: from then on it counts as lost, and the unit creates runners again.
REBOOT_WAIT = 10 * MINUTE
REBOOT_AGAIN = DAY
# After GitHub has called a version deprecated: until one runner is tried with it, and until all are.
DEPRECATED_RETRY = 15 * MINUTE
DEPRECATED_END = HOUR
# Between the creations of runners whose agents end without a job: the first pause, doubled each time, and the longest.
BACK_OFF = 2
BACK_OFF_LIMIT = 10 * MINUTE
# A time without any reconcile that is longer than this, and than three intervals, is reported for a day.
UNATTENDED_AFTER = 30 * MINUTE


def reconcile_limit(interval: int) -> int:
    """Seconds after which a reconcile is ended; ``interval`` is the option reconcile-interval, in minutes."""
    return max((interval - 1) * MINUTE, CREATION + REST_OF_RECONCILE)
