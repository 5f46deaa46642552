"""Bytes in a runner's files, guided by the branches they take: `python -m tests.faults.fuzz_bytes SECONDS FOLDER`.

A crash leaves the bytes in FOLDER. The first byte chooses the file.
"""

import json
import sys
from pathlib import Path

try:
    import atheris
except ModuleNotFoundError:
    sys.exit("atheris is not installed: pip install 'atheris>=3,<4' (Python 3.11 to 3.13, x86-64)")

with atheris.instrument_imports(include=["metrics"]):
    from metrics import runner  # noqa: F401
    from tests.faults.judge import POST_JOB, PRE_JOB, World, judge, whole

WORDS = (
    *(f'"{name}"' for name in (*PRE_JOB, *POST_JOB, "code", "normal", "octo-org/demo")),
    *("\\\\u000a", "\\\\ud800", "1e999", "NaN", "-Infinity", "true", "null", "[[[[", '{\\"', "\\x00", "\\xff"),
)


def main() -> None:
    """Never returns."""
    seconds, folder = sys.argv[1:]
    seeds = Path(folder, "seeds")
    seeds.mkdir()
    for number, content in enumerate((json.dumps(PRE_JOB), json.dumps(POST_JOB), "990.25\n")):
        (seeds / str(number)).write_bytes(bytes([number]) + content.encode())
    words = Path(folder, "words")
    words.write_text("".join('"' + word.replace('"', '\\"') + '"\n' for word in WORDS))
    with World() as world:

        def one(data: bytes) -> None:
            names = ("pre", "post", "installed")
            if data:
                judge(world, whole(**{names[data[0] % len(names)]: data[1:]}), seconds=0)

        # All seeds take the same branches: without keep_seed only the shortest would be changed, and slowly grown.
        limits = [f"-max_total_time={seconds}", "-timeout=20", "-max_len=1100", "-len_control=0", "-keep_seed=1"]
        places = [f"-dict={words}", f"-artifact_prefix={folder}/", str(seeds)]
        atheris.Setup([sys.argv[0], "-print_final_stats=1", *limits, *places], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
