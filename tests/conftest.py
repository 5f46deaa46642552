"""What the tests of all folders share."""

import gc


def pytest_collection_finish() -> None:
    """What is there before the first test stays until the last: no collection of garbage looks at it again."""
    gc.collect()
    gc.freeze()
