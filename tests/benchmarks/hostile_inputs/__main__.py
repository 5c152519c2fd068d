"""Inputs that no command can use: each is one message and exit code 2, without a traceback, soon and in little memory.

    python -m tests.benchmarks.hostile_inputs [KIND …] [-k WORDS] [-v] [--jobs 2] [--patience 1] [--new-interpreter]

Every case is a process of its own with a copy of a small finished pipeline. It passes if the process ends with exit
code 2 and a message on stderr, or with 0 where damage may be repaired, without a traceback or a library's warning,
within 10 seconds and 2 GiB. KIND runs cases of one kind only; the table at the end names the kinds.

Cases are forked from one process that has imported everything, so the seconds are those of the work alone. With
`--new-interpreter` each starts as from a shell and pays for its imports. A case that is too slow runs again at the end,
alone and (as root) before other work of the machine. `--patience 5` allows five times the seconds.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.benchmarks.hostile_inputs.case import SECONDS, Case, Outcome
from tests.benchmarks.hostile_inputs.families import all_cases
from tests.benchmarks.hostile_inputs.fixture import make_fixture
from tests.benchmarks.hostile_inputs.process import import_everything, run_cases


def parse(kinds: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"only these of: {', '.join(kinds)}")
    parser.add_argument("-k", default="", metavar="WORDS", help="only cases whose kind and name contain this")
    parser.add_argument("-v", action="store_true", help="print every message")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time [2]")
    parser.add_argument("--patience", type=float, default=1.0, help="factor of the seconds that a case may take [1]")
    parser.add_argument("--new-interpreter", action="store_true", help="start every case as from a shell")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(kinds):
        parser.error(f"no cases of the kind {', '.join(sorted(unknown))}; expected {', '.join(kinds)}")
    return options


def show(outcome: Outcome, every: bool) -> None:
    lines = outcome.errors.strip().splitlines()
    if every:
        used = f"{outcome.seconds:.1f} s, {outcome.peak / 2**30:.1f} GiB"
        print(f"[{outcome.exit_code}] {outcome.case} ({used})", *lines[:4], sep="\n    ", flush=True)
    if outcome.failures:
        print(f"FAILED {outcome.case}: {'; '.join(outcome.failures)}", *lines[-4:], sep="\n    ", flush=True)


def print_table(outcomes: list[Outcome]) -> None:
    total = Counter(outcome.case.kind for outcome in outcomes)
    passed = Counter(outcome.case.kind for outcome in outcomes if not outcome.failures)
    for kind, count in total.items():
        print(f"{kind:16} {passed[kind]:4} of {count}")
    print(f"{'all':16} {passed.total():4} of {total.total()}")
    print(f"slowest {max(o.seconds for o in outcomes):.1f} s, largest {max(o.peak for o in outcomes) / 2**30:.1f} GiB")


def main() -> None:
    cases = all_cases()
    options = parse(list(dict.fromkeys(case.kind for case in cases)))

    def chosen(case: Case) -> bool:
        return (not options.kinds or case.kind in options.kinds) and options.k in str(case)

    import_everything()
    outcomes = []
    with tempfile.TemporaryDirectory() as place:
        fixture = Path(place) / "fixture"
        make_fixture(fixture)
        limit = SECONDS * options.patience
        for outcome in run_cases(filter(chosen, cases), fixture, limit, options.jobs, options.new_interpreter):
            show(outcome, options.v)
            outcomes.append(outcome)
    if not outcomes:
        raise SystemExit(f"no case contains {options.k!r}")
    print_table(outcomes)
    sys.exit(any(outcome.failures for outcome in outcomes))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
