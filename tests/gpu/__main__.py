"""`python -m tests.gpu [STEP ...]`: the steps build, test, sanitize, bench and channels, or those named.

Each prints its verdict as its last line and fails the command; a build that fails ends it. A step that finds no
GPU fails: it was asked for what it cannot do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tests.gpu import steps


def main(argv: Sequence[str]) -> int:
    """The command."""
    unknown = [name for name in argv if name not in steps.STEPS]
    if unknown:
        print(f"there is no step {unknown[0]!r}: the steps are {', '.join(steps.STEPS)}", file=sys.stderr)
        return 2
    lines, passed = [], True
    for name in argv or steps.STEPS:
        verdict = steps.take(name)
        lines.append(verdict.line(name))
        print(lines[-1], flush=True)
        passed &= verdict.passed
        if name == "build" and not verdict.passed:
            break
    if len(lines) > 1:
        print("\n" + "\n".join(lines))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
