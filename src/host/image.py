"""The image that runners start from: built in an instance, published, and only then given its alias."""

import hashlib
import logging
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2

import provision
from engine.api import wait_until
from engine.client import LxdClient
from engine.instance import LxdInstance
from errors import HostError, LxdError
from gh.archives import ActionArchives
from host import action_archives, runner_binary, systemd
from models import ImageSource, PublishedImage
from redaction import redact, tail
from settings import ImageBuild
from system import LOCKS, exclusive, write_file

logger = logging.getLogger(__name__)

NAME = "build-image"
# Units of this charm on one machine have the same images: any of them may build, see image_builds.owning_unit.
JOURNAL = f"journalctl -u 'ghro.{NAME}.*'"
LOCK = LOCKS / "build-image.lock"
# Why the last build of an image failed, one line for each image; a build that succeeds removes the line of its image.
FAILURE = Path("/var/lib/github-runner/build-image.failure")
BUILDER = "github-runner-image-builder"
ALIAS_PROPERTY = "github-runner.alias"
# Images that exist already have this name.
BINARY_PROPERTY = "github-runner.application"
SOURCE_PROPERTY = "github-runner.source"
ADDITIONS_PROPERTY = "github-runner.additions"
DISK_PROPERTY = "github-runner.disk"
OWNER_PROPERTY = "github-runner.owner"
# The builder's disk where it is a virtual machine, in bytes. The published image is as large, and so is the smallest
# disk that a runner can have. LXD's own default would be 10 GiB; a full image takes about 5 GiB.
DISK = 8 << 30
INTERVAL_HOURS = 6
# In seconds; 28 builds in a row have failed by then.
STALE_AFTER = 7 * 86400
DOWNLOAD_TIMEOUT = 1800
STEP_TIMEOUT = 1800
SCRIPT_TIMEOUT = 1800
# Of the output of image-script, in characters, for the log.
OUTPUT_LIMIT = 4000
PUBLISH_TIMEOUT = 1800
REMOVAL_TIMEOUT = 120
SCRIPT = "image-script"
# What the script provision-image.sh knows, in this order; each is a line of progress.
STEPS = ("network", "upgrade", "packages", "extra-packages", "executables", "settings", "binary", SCRIPT, "clean")


def service(unit: str) -> str:
    """The service that builds the image."""
    return systemd.unit_name(NAME, unit, "service")


def timer(unit: str) -> str:
    """The timer that starts the service every six hours."""
    return systemd.unit_name(NAME, unit, "timer")


def ensure(
    lxd: LxdClient, jinja: jinja2.Environment, app: str, build: ImageBuild, progress: Callable[[str], None]
) -> bool:
    """Build the image for an application unless it is there; whether it was built.

    HostError while another process builds it.
    """
    if is_there(lxd, build):
        name_foreign(lxd, build.alias)
        return False
    with exclusive(LOCK, 0) as free:
        if not free:
            raise HostError(f"image {build.alias}: being built, see `{JOURNAL}`")
        make(lxd, jinja, app, build, progress)
    return True


def is_there(lxd: LxdClient, build: ImageBuild) -> bool:
    """Whether an image of the right type has the alias."""
    found = current(lxd, build.alias)
    return found is not None and found["type"] == ("container" if build.container else "virtual-machine")


def rebuild(
    lxd: LxdClient, jinja: jinja2.Environment, app: str, build: ImageBuild, progress: Callable[[str], None]
) -> bool:
    """Build the image, whether there is one or not, as the timer does; False if another build is running."""
    with exclusive(LOCK, 0) as free:
        if free:
            make(lxd, jinja, app, build, progress)
        return free


def make(
    lxd: LxdClient, jinja: jinja2.Environment, app: str, build: ImageBuild, progress: Callable[[str], None]
) -> str:
    """Build, publish, move the alias, delete the old images; returns the new fingerprint.

    With the runner binary in it, if one has been downloaded. ``app`` is recorded as its owner.

    HostError names the step; whatever was made is then removed, and the image of before stays in use.
    """
    tarball = runner_binary.current()
    try:
        with _step(build, f"creating the builder from {build.source}", progress):
            builder, disk = _create_builder(lxd, build)
        _provision(builder, jinja, build, tarball, progress)
        if build.cached_actions:
            with _step(build, "archives of actions", progress):
                action_archives.add(builder, build, ActionArchives(build.github_url, build.ca_certificates))
        with _step(build, "publishing", progress):
            builder.stop()
            if not build.container:
                _set_templates(lxd)
            fingerprint = _publish(lxd, app, build, tarball, disk)
        with _step(build, "moving the alias", progress):
            _move_alias(lxd, build.alias, fingerprint)
    except HostError as error:
        note_failure(build.alias, str(error))
        raise
    finally:
        with suppress(LxdError):
            _remove_builder(lxd)
        _remove_old(lxd, build.alias)
    note_failure(build.alias)
    logger.info("Image %s: built, %s", build.alias, fingerprint[:12])
    return fingerprint


def failure(alias: str) -> str:
    """Why the last build of an image failed; empty if it did not."""
    return next((line for line in _failures() if line.startswith(f"image {alias}: ")), "")


def note_failure(alias: str, reason: str = "") -> None:
    """Record why the build of an image failed; without a reason, remove what is recorded. Other images' lines stay."""
    lines = [line for line in _failures() if not line.startswith(f"image {alias}: ")]
    lines += [" ".join(reason.split())] if reason else []
    if lines:
        write_file(FAILURE, "\n".join(lines) + "\n", 0o600)
    else:
        FAILURE.unlink(missing_ok=True)


def _failures() -> list[str]:
    try:
        return FAILURE.read_text(errors="replace").splitlines()
    except OSError:
        return []


def current(lxd: LxdClient, alias: str) -> Any:
    """The image of an alias as LXD describes it, or None where there is no alias."""
    # A build that ends in between moves the alias and deletes the image that it had.
    for _ in range(2):
        found = lxd.find("images", "aliases", alias)
        if found is None:
            return None
        image = lxd.find("images", found["target"])
        if image is not None:
            return image
    raise LxdError(f"the image of the alias {alias} is being changed")


def smallest_disk(lxd: LxdClient, alias: str, source: ImageSource) -> int:
    """The smallest disk, in bytes, of a virtual machine that is made from the image of an alias.

    The next build from another source may have a smaller one.
    """
    properties = (current(lxd, alias) or {"properties": {}})["properties"]
    return int(properties.get(DISK_PROPERTY, DISK)) if properties.get(SOURCE_PROPERTY) == str(source) else DISK


def published(lxd: LxdClient, alias: str) -> PublishedImage:
    """What the image of an alias records about itself."""
    image = current(lxd, alias)
    if image is None or ALIAS_PROPERTY not in image["properties"]:
        return PublishedImage()
    built = datetime.strptime(image["uploaded_at"][:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    names = (SOURCE_PROPERTY, ADDITIONS_PROPERTY, BINARY_PROPERTY, OWNER_PROPERTY)
    source, additions, binary, owner = (image["properties"].get(name, "") for name in names)
    return PublishedImage(f"{source} {additions}".strip(), additions, binary, built.timestamp(), owner)


def ensure_timer(jinja: jinja2.Environment, unit: str) -> bool:
    """Rebuild every six hours at a minute of the unit's own, so that not all units ask the server at once."""
    seed = f"{unit} {socket.gethostname()}"
    offset = int(hashlib.sha256(seed.encode()).hexdigest(), 16) % (INTERVAL_HOURS * 60)
    values = {
        "unit": unit,
        "python": sys.executable,
        "charm": str(Path(__file__).resolve().parents[2]),
        "python_path": os.environ.get("PYTHONPATH", ""),
        "hours": ",".join(f"{hour:02}" for hour in range(offset // 60, 24, INTERVAL_HOURS)),
        "minute": f"{offset % 60:02}",
    }
    templates = {service(unit): f"ghro.{NAME}.service.j2", timer(unit): f"ghro.{NAME}.timer.j2"}
    files = {name: jinja.get_template(template).render(values) for name, template in templates.items()}
    return systemd.ensure(timer(unit), files)


def remove_timer(unit: str) -> list[str]:
    """Stop the unit's builds, also one that runs; returns what was removed."""
    return systemd.remove(service(unit), timer(unit), timeout=120)


def remove_builder(lxd: LxdClient) -> list[str]:
    """Remove what a build that was stopped has left, unless another unit builds; returns nothing."""
    with exclusive(LOCK, 0) as free:
        if free:
            _remove_builder(lxd)
    return []


def remove(lxd: LxdClient) -> list[str]:
    """Remove every image that this charm built, and the builder; returns what was removed."""
    paths = _unlinked(LOCK, FAILURE)
    _remove_builder(lxd)
    images = _built(lxd)
    for image in images:
        lxd.change("DELETE", "images", image["fingerprint"])
    return paths + [f"image {image['properties'][ALIAS_PROPERTY]}" for image in images]


def remove_unused(lxd: LxdClient, used: Collection[str]) -> list[str]:
    """Remove the images that this charm built for other aliases; returns what was removed."""
    unused = [image for image in _built(lxd) if image["properties"][ALIAS_PROPERTY] not in used]
    for image in unused:
        lxd.change("DELETE", "images", image["fingerprint"])
        note_failure(image["properties"][ALIAS_PROPERTY])
    return [f"image {image['properties'][ALIAS_PROPERTY]}" for image in unused]


def _unlinked(*paths: Path) -> list[str]:
    found = [path for path in paths if path.exists()]
    for path in found:
        path.unlink()
    return [str(path) for path in found]


def _create_builder(lxd: LxdClient, build: ImageBuild) -> tuple[LxdInstance, int]:
    """The running builder, and the size of its disk in bytes where it is a virtual machine."""
    _remove_builder(lxd)
    disk = DISK
    try:
        builder = _request_builder(lxd, build, disk)
    except LxdError as error:
        # An image that was published from a virtual machine is as large as its disk, 10 GiB unless given.
        larger = re.search(r"Source image size \((\d+)\) exceeds", str(error))
        if not larger:
            raise
        disk = int(larger[1])
        builder = _request_builder(lxd, build, disk)
    builder.start()
    builder.wait_ready()
    return builder, disk


def _request_builder(lxd: LxdClient, build: ImageBuild, disk: int) -> LxdInstance:
    source = {"type": "image", "alias": build.source.alias or build.alias}
    if build.source.server:
        source |= {"mode": "pull", "protocol": "simplestreams", "server": build.source.server}
    root = {"type": "disk", "path": "/", "pool": "runner"}
    return lxd.create_instance(
        BUILDER,
        source=source,
        ephemeral=False,
        virtual_machine=not build.container,
        profiles=["default"],
        config={"security.nesting": "true", "boot.autostart": "false"} if build.container else {},
        devices={"root": root if build.container else {**root, "size": str(disk)}},
        timeout=DOWNLOAD_TIMEOUT,
    )


def _set_templates(lxd: LxdClient) -> None:
    """Have LXD write each virtual machine's own name into it, and nothing else.

    Of a container LXD sets the name itself. With the templates of images for cloud-init, the agent would reboot each
    virtual machine on its first boot, for a cloud-init that is disabled.
    """
    path = ("instances", BUILDER, "metadata")
    template = {"when": ["create", "copy"], "template": "hostname.tpl"}
    content = b"{{ instance.name }}\n"
    lxd.request("POST", *path, "templates", params={"path": "hostname.tpl"}, data=content)
    lxd.change("PUT", *path, json={**lxd.get(*path), "templates": {"/etc/hostname": template}})


def _provision(
    builder: LxdInstance,
    jinja: jinja2.Environment,
    build: ImageBuild,
    tarball: Path | None,
    progress: Callable[[str], None],
) -> None:
    with _step(build, "writing the script", progress):
        script = jinja.get_template("provision-image.sh.j2").render(
            executables=provision.executables(build.arch),
            network=provision.IMAGE_NETWORK,
            ca_folder=provision.CA_FOLDER,
            ca_bundle=provision.CA_BUNDLE,
            proxies_file=provision.IMAGE_PROXIES,
            packages=build.extra_packages,
            option_script=provision.OPTION_SCRIPT,
            script_timeout=SCRIPT_TIMEOUT,
            output_limit=OUTPUT_LIMIT,
            binary_archive=provision.BINARY_ARCHIVE,
            image_binary=provision.IMAGE_BINARY,
            container=build.container,
            runner_logs=provision.RUNNER_APPLICATION / "_diag",
            console_end=provision.CONSOLE_END,
        )
        builder.push(str(provision.IMAGE_SCRIPT), script.encode(), mode=0o700)
        _push_inputs(builder, build, tarball)
    for name in _steps(build):
        with _step(build, name, progress):
            _run_step(builder, name)


def _push_inputs(builder: LxdInstance, build: ImageBuild, tarball: Path | None) -> None:
    environment = build.runner_proxies.environment("localhost", "127.0.0.1")
    proxies = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    builder.push(str(provision.IMAGE_PROXIES), proxies.encode(), mode=0o600)
    for certificate in provision.certificate_files(build.ca_certificates):
        builder.push(str(certificate.path), certificate.content.encode(), mode=certificate.mode)
    if tarball is not None:
        with tarball.open("rb") as file:
            builder.push(str(provision.BINARY_ARCHIVE), file, mode=0o600)
    if build.script:
        builder.push(str(provision.OPTION_SCRIPT), build.script.encode(), mode=0o700)


def _steps(build: ImageBuild) -> list[str]:
    """Without those of options that are not set."""
    unset = {"extra-packages": not build.extra_packages, SCRIPT: not build.script}
    return [name for name in STEPS if not unset.get(name)]


def _run_step(builder: LxdInstance, name: str) -> None:
    """LxdError if it fails; of the option's script only the exit code, because it may print anything."""
    limit, started = (SCRIPT_TIMEOUT + 60 if name == SCRIPT else STEP_TIMEOUT), time.monotonic()
    done = builder.execute([str(provision.IMAGE_SCRIPT), name], timeout=limit, output=True)
    if done.code == 0:
        return
    if name != SCRIPT:
        raise LxdError(f"ended with {done.code}: {done.last_words}")
    logger.error("The output of image-script ends with:\n%s", tail(done.stderr, OUTPUT_LIMIT))
    # The exit codes of timeout(1), which the script itself may have as well.
    if done.code in (124, 137) and time.monotonic() - started >= SCRIPT_TIMEOUT:
        raise LxdError(f"not done within {SCRIPT_TIMEOUT // 60} minutes")
    raise LxdError(f"exit code {done.code}, see its output in the log")


def _publish(lxd: LxdClient, app: str, build: ImageBuild, tarball: Path | None, disk: int) -> str:
    properties = {} if build.container else {DISK_PROPERTY: str(disk)}
    body = {
        "source": {"type": "instance", "name": BUILDER},
        "properties": {
            "description": f"GitHub runner {build.alias}",
            ALIAS_PROPERTY: build.alias,
            BINARY_PROPERTY: tarball.name if tarball else "",
            SOURCE_PROPERTY: str(build.source),
            ADDITIONS_PROPERTY: build.additions,
            OWNER_PROPERTY: app,
            **properties,
        },
        # It never leaves this machine: packing it would cost minutes at each build and at each unpacking. LXD
        # compresses the disk of a virtual machine all the same (a qcow2), and unpacks it once for a pool.
        "compression_algorithm": "none",
    }
    return str(lxd.change("POST", "images", json=body, timeout=PUBLISH_TIMEOUT)["fingerprint"])


def name_foreign(lxd: LxdClient, alias: str) -> None:
    """Say that runners start from an image that this charm did not build: the previous charm's, or the operator's."""
    image = current(lxd, alias)
    if image is not None and ALIAS_PROPERTY not in image["properties"]:
        logger.warning(
            "Image %s was not built by this charm: %s. Runners start from it until the next build, which gives it the "
            "alias %s instead",
            alias,
            image["fingerprint"][:12],
            _spare_alias(alias, image),
        )


def _spare_alias(alias: str, image: Mapping[str, Any]) -> str:
    return f"{alias}-{image['fingerprint'][:12]}"


def _move_alias(lxd: LxdClient, alias: str, fingerprint: str) -> None:
    """One request: at no moment is the alias away. An image that this charm did not build keeps another alias."""
    image = current(lxd, alias)
    if image is not None and ALIAS_PROPERTY not in image["properties"]:
        spare = _spare_alias(alias, image)
        if lxd.find("images", "aliases", spare) is None:
            lxd.change("POST", "images", "aliases", json={"name": spare, "target": image["fingerprint"]})
    if lxd.find("images", "aliases", alias) is None:
        lxd.change("POST", "images", "aliases", json={"name": alias, "target": fingerprint})
    else:
        lxd.change("PUT", "images", "aliases", alias, json={"target": fingerprint, "description": ""})


def _remove_builder(lxd: LxdClient) -> None:
    """Delete it; what a build that was cut off had asked LXD for may have to come to its end first."""

    def gone() -> bool:
        try:
            if lxd.find("instances", BUILDER) is None:
                return True
            builder = lxd.instance(BUILDER)
            if builder.running:
                builder.stop(force=True)
            builder.delete()
        except LxdError as error:
            logger.info("%s", error)
            return False
        return True

    wait_until(gone, REMOVAL_TIMEOUT, "the removal of the builder", interval=1)


def _built(lxd: LxdClient) -> list[Any]:
    return [image for image in lxd.get("images", recursion=1) if ALIAS_PROPERTY in image["properties"]]


def _remove_old(lxd: LxdClient, alias: str) -> None:
    """Images that this charm built and no alias names: old ones, and what an interrupted build had published."""
    with suppress(LxdError):
        for image in _built(lxd):
            if image["properties"][ALIAS_PROPERTY] == alias and not image["aliases"]:
                lxd.change("DELETE", "images", image["fingerprint"])


@contextmanager
def _step(build: ImageBuild, what: str, progress: Callable[[str], None]) -> Iterator[None]:
    started = time.monotonic()
    progress(what)
    try:
        yield
    except (LxdError, OSError) as error:
        raise HostError(f"image {build.alias}: {what} failed: {redact(str(error))}") from error
    logger.info("Image %s: %s done (%.1f s)", build.alias, what, time.monotonic() - started)
