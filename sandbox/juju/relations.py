"""The unit's relations, and what the applications on their other side do."""

from typing import Any

import store
from running import JujuError
from uniter import drain, ingress, queue


def integrate(
    endpoint: str, remote_app: str = "", data: dict[str, str] | None = None, app_data: dict[str, str] | None = None
) -> str:
    """Relate the unit to an application with one unit, whose databag holds data; gives the relation's id."""
    with store.Changing() as state:
        known = state["charm"]["endpoints"].get(endpoint)
        if known is None:
            raise JujuError(f'application "{state["app"]}" has no "{endpoint}" relation')
        remote = remote_app or f"remote-{endpoint}"
        if any((r["endpoint"], r["remote_app"]) == (endpoint, remote) for r in state["relations"].values()):
            raise JujuError(
                f'cannot add relation "{state["app"]}:{endpoint} {remote}:{endpoint}": relation already exists'
            )
        number, state["next_relation"] = str(state["next_relation"]), state["next_relation"] + 1
        state["relations"][number] = {
            "endpoint": endpoint,
            "interface": known["interface"],
            "remote_app": remote,
            "units": {},
            "remote_app_data": dict(app_data or {}),
            "local_unit": ingress(),
            "local_app": {},
        }
        queue(state, f"{endpoint}-relation-created", relation_id=number, remote_app=remote)
        join(state, number, f"{remote}/0", data or {})
        if app_data:
            queue(state, f"{endpoint}-relation-changed", relation_id=number, remote_app=remote)
    drain()
    return number


def join(state: dict[str, Any], number: str, unit: str, data: dict[str, str]) -> None:
    record = state["relations"][number]
    record["units"][unit] = {str(key): str(value) for key, value in data.items()}
    for event in ("joined", "changed"):
        about = {"relation_id": number, "remote_app": record["remote_app"], "remote_unit": unit}
        queue(state, f"{record['endpoint']}-relation-{event}", **about)


def relation_number(state: dict[str, Any], which: str) -> str:
    """A relation's id from its id or its endpoint's name."""
    which = str(which).rpartition(":")[2]
    found = [n for n, record in state["relations"].items() if which in (n, record["endpoint"])]
    if not found:
        raise JujuError(f'relation "{which}" not found')
    return found[0]


def set_relation_data(
    relation: str, data: dict[str, str], unit: str | None = None, app: bool = False
) -> dict[str, Any]:
    """The remote side changes its databag; an empty value removes a key. Fires relation-changed if it differs."""
    with store.Changing() as state:
        number = relation_number(state, relation)
        record = state["relations"][number]
        unit = unit or next(iter(record["units"]), "")
        bag = record["remote_app_data"] if app else record["units"][unit]
        merged = {key: value for key, value in {**bag, **data}.items() if value != ""}
        if merged != bag:
            bag.clear()
            bag.update(merged)
            about = {"relation_id": number, "remote_app": record["remote_app"]}
            queue(state, f"{record['endpoint']}-relation-changed", **about, **({} if app else {"remote_unit": unit}))
    return drain()


def _depart(state: dict[str, Any], number: str, unit: str) -> None:
    record = state["relations"][number]
    if unit not in record["units"]:
        raise JujuError(f'unit "{unit}" not found')
    departed = {unit: record["units"].pop(unit)}
    # Hooks that were still due for the unit are not run any more.
    state["queue"] = [h for h in state["queue"] if (h.get("relation_id"), h.get("remote_unit")) != (number, unit)]
    about = {"relation_id": number, "remote_app": record["remote_app"], "remote_unit": unit}
    queue(state, f"{record['endpoint']}-relation-departed", **about, departing_unit=unit, departed=departed)


def remove_relation(relation: str) -> dict[str, Any]:
    with store.Changing() as state:
        break_relation(state, relation_number(state, relation))
    return drain()


def break_relation(state: dict[str, Any], number: str) -> None:
    record = state["relations"][number]
    for unit in sorted(record["units"]):
        _depart(state, number, unit)
    about = {"relation_id": number, "remote_app": record["remote_app"]}
    queue(state, f"{record['endpoint']}-relation-broken", **about)


def relation_data(relation: str) -> dict[str, Any]:
    """Both sides' databags of a relation."""
    state = store.read()
    return state["relations"][relation_number(state, relation)]
