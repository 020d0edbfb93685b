"""More examples of the contract than each run of the tests has.

`python -m tests.hub.contract_walk --examples 10000 --seed 1`: each seed has other examples, and the
same ones each time. `--compressed` takes those of `tests.hub.test_compressed_contract`. It prints
how long they took, or the shortest steps that lead to a failure.
"""

from __future__ import annotations

import argparse
import time

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.hub.test_compressed_contract import CompressedMachine
from tests.hub.test_contract import ContractMachine


def main() -> None:
    """Look through the examples of one seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub.contract_walk")
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compressed", action="store_true")
    options = parser.parse_args()
    machine = CompressedMachine if options.compressed else ContractMachine
    began = time.monotonic()
    run_state_machine_as_test(
        seed(options.seed)(machine),
        settings=settings(
            max_examples=options.examples,
            database=None,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{options.examples} examples in {time.monotonic() - began:.0f} s: none failed")


if __name__ == "__main__":
    main()
