"""`python -m tests.compat [SUITE ...]`: other people's clients against a real `roadtrain serve`.

Without names: all of them. The tables of docs/compatibility.md are written, of each suite's newest run. It fails if a test fails
that is not expected to, and if one passes that is. It knows nothing of single suites.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import stack
from tests.compat import report
from tests.compat.run import last, run
from tests.compat.suites import SUITES

# Names of OpenAI's models that the suites ask for: they are ours here.
NAMES = "SmolLM2-135M-Instruct,gpt-6-astra,gpt-3.5-turbo-instruct,text-embedding-3-small,model"


def main() -> int:
    """0 if everything is as expected."""
    parser = argparse.ArgumentParser(prog="python -m tests.compat", description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"which, in order; none: all ({', '.join(names())})")
    parser.add_argument("--url", help="a server that runs already; it must answer to the names that the suites ask for")
    arguments = parser.parse_args()
    wanted = [suite for suite in SUITES if not arguments.suites or suite.name in arguments.suites]
    if len(wanted) < len(arguments.suites):
        parser.error(f"the suites are {', '.join(names())}")
    results = []
    for flags, suites in itertools.groupby(wanted, lambda suite: suite.flags):
        with server(arguments.url, flags) as url:
            for suite in suites:
                results.append(run(suite, url))
                print(report.shown(results[-1]), flush=True)
    report.write([last(suite) for suite in SUITES])
    return 0 if all(result.good for result in results) else 1


@contextmanager
def server(url: str | None, flags: tuple[str, ...]) -> Iterator[str]:
    """The one at `url`, or one that is started with those flags."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        started = stack.start(Path(folder), "--served-names", NAMES, *flags)
        try:
            yield started.url
        finally:
            started.stop()


def names() -> list[str]:
    """What the suites are called."""
    return [suite.name for suite in SUITES]


if __name__ == "__main__":
    sys.exit(main())
