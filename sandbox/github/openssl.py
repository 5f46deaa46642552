"""The openssl program, for what Python's standard library cannot do."""

import subprocess


def run(*arguments: str, given: str = "") -> str:
    """Run openssl with `given` as its input and return its output; RuntimeError with its complaint if it fails."""
    try:
        done = subprocess.run(
            ["openssl", *arguments], input=given, check=True, capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        raise RuntimeError("the sandbox needs openssl: apt-get install openssl") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"openssl: {error.stderr.strip()}") from None
    return done.stdout
