"""Pack the stand-in for GitHub's runner agent the way GitHub ships the real one."""

import functools
import gzip
import io
import json
import tarfile
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "runner_application"
MODIFIED = 1_735_689_600  # one fixed moment, so that equal content gives equal bytes
OWNER = 1001  # GitHub's tarball carries the numbers of its build machine's user
EXECUTABLE_NAMES = {"run-helper.sh.template", "Runner.Listener", "Runner.Worker"}


@functools.lru_cache(maxsize=8)
def build(version: str, architecture: str, interrupt: float = 7.5) -> bytes:
    """The gzipped tarball of this version for x64 or arm64; the same arguments give the same bytes.

    ``interrupt``: the seconds between SIGINT and SIGTERM for a step that is cancelled.
    """
    if architecture not in ("x64", "arm64"):
        raise ValueError(f"there is no runner agent for {architecture}")
    about = json.dumps({"version": version, "architecture": architecture, "interrupt": interrupt}).encode()
    files = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in _sources()}
    files["bin/about.json"] = about
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for folder in sorted({str(Path(name).parent) for name in files} - {"."}):
            archive.addfile(_entry(f"./{folder}", tarfile.DIRTYPE, 0o755))
        for name, content in sorted(files.items()):
            executable = name.endswith(".sh") or Path(name).name in EXECUTABLE_NAMES
            entry = _entry(f"./{name}", tarfile.REGTYPE, 0o755 if executable else 0o644, len(content))
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def _sources() -> list[Path]:
    return [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".pyc"]


def _entry(name: str, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.mtime = kind, mode, size, MODIFIED
    entry.uid = entry.gid = OWNER
    return entry
