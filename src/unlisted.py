"""A reconcile without GitHub's list of runners: when it can do without, and what its runners are taken for. No I/O.

The list of an organisation with many runners takes many requests. In demand mode GitHub reports how many jobs run, and
a new runner needs no list. So the list is read where it may change what a reconcile does to a running instance.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from flavor_plans import Plans, Wanted
from plan import Desired, Reason
from runner_view import Process, RunnerView

# Seconds after its creation in which a runner takes a waiting job. Also for how long a list tells why one did not.
PICK_UP = 60.0


def presumed(
    wanted: Sequence[Wanted], fingerprints: Mapping[str, str], views: Iterable[RunnerView], list_age: float, now: float
) -> list[RunnerView] | None:
    """The runners, of which the oldest of each flavour are taken for those with a job; None if the list is needed.

    ``list_age`` is how many seconds ago the list was read, ``now`` UNIX seconds.
    """
    known = {one.flavor: one for one in wanted if one.number == 0 or one.scale_set is not None}
    grouped: dict[str, list[RunnerView]] = {flavor: [] for flavor in known}
    found = sorted(views, key=lambda view: view.created_at)
    for view in found:
        one = known.get(view.flavor)
        if one is not None and (not view.running or _is_current(view, one, fingerprints[view.flavor])):
            grouped[view.flavor].append(view)
        elif view.running:
            return None
    if len(known) < len(wanted) or any(_is_kept_waiting(one, grouped[one.flavor], list_age, now) for one in wanted):
        return None
    busy = {view.name for one in wanted for view in _running(grouped[one.flavor])[: one.running_jobs]}
    return [
        replace(view, presumed=True, process=Process.WORKER if view.name in busy else Process.RUNNING) for view in found
    ]


def needs_no_list(plans: Plans, views: Iterable[RunnerView]) -> bool:
    """Whether plans that were made without the list remove no running instance, and no agent has ended without a job.

    GitHub's number of jobs that run falls before the instance of an ended job is gone. Of views with a health probe
    such an instance is neither idle nor busy.
    """
    ended = any(view.process in (Process.FAILED, Process.DEPRECATED) for view in views)
    return not (ended or plans.whole.postponed or any(why is not Reason.UNHEALTHY for _, why in plans.whole.remove))


def is_new(view: RunnerView, now: float) -> bool:
    """Whether a runner that is taken for idle may not be online yet."""
    return view.presumed and not view.seen_online and not _is_ready(view, now)


def _is_current(view: RunnerView, wanted: Wanted, fingerprint: str) -> bool:
    """Whether a running instance is as one that is created now, and was not found offline by the last list."""
    desired = Desired(None, fingerprint, scale_set=wanted.scale_set)
    return desired.is_current(view) and view.prepared and view.offline_since is None


def _is_kept_waiting(wanted: Wanted, views: Sequence[RunnerView], list_age: float, now: float) -> bool:
    """Whether jobs wait although more runners are ready than jobs run: some of them may get no job."""
    ready = [view for view in _running(views) if _is_ready(view, now)]
    return wanted.since is not None and len(ready) > wanted.running_jobs and list_age >= PICK_UP


def _is_ready(view: RunnerView, now: float) -> bool:
    # One that was created in the future is older than the clock says.
    return not 0 <= now - (view.prepared_at or view.created_at) < PICK_UP


def _running(views: Iterable[RunnerView]) -> list[RunnerView]:
    return [view for view in views if view.running]
