"""`python -m tests.compat [SUITE ...]`: other people's clients against a real `roadtrain serve`.

Without names: all of them, and the tables of docs/compatibility.md are written. It fails if a test fails that is not
expected to, and if one passes that is. It knows nothing of single suites.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests import stack
from tests.compat import report
from tests.compat.run import run
from tests.compat.suites import SUITES

# Names of OpenAI's models that the suites ask for: they are ours here.
NAMES = "SmolLM2-135M-Instruct,gpt-6-astra,gpt-3.5-turbo-instruct,text-embedding-3-small,gpt-4o-mini"


def main() -> int:
    """0 if everything is as expected."""
    parser = argparse.ArgumentParser(prog="python -m tests.compat", description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"which, in order; none: all, and the table is written ({', '.join(names())})")
    parser.add_argument("--url", help="a server that runs already; it must answer to the names that the suites ask for")
    arguments = parser.parse_args()
    wanted = [suite for suite in SUITES if not arguments.suites or suite.name in arguments.suites]
    if len(wanted) < len(arguments.suites):
        parser.error(f"the suites are {', '.join(names())}")
    with tempfile.TemporaryDirectory() as folder:
        server = None if arguments.url else stack.start(Path(folder), "--served-names", NAMES, "--max-model-len", "4096")
        try:
            results = []
            for suite in wanted:
                results.append(run(suite, arguments.url or server.url))
                print(report.shown(results[-1]), flush=True)
        finally:
            if server is not None:
                server.stop()
    if not arguments.suites:
        report.write(results)
    return 0 if all(result.good for result in results) else 1


def names() -> list[str]:
    """What the suites are called."""
    return [suite.name for suite in SUITES]


if __name__ == "__main__":
    sys.exit(main())
