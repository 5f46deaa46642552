"""``python3 -m sandbox.github``: serve the stand-in on the command line's terms."""

from sandbox.github.server import main

main()
