"""The proof of the prior: every contender, on people it never learned from, in one table per data set.

    python -m benchmarks.prior --set oasis_beauty --choose           the people set aside, one seed
    python -m benchmarks.prior --set oasis_beauty --seeds 0,1,2,3,4  the test, kept per row and seed
    python -m benchmarks.prior --steering                            only the curves of steering, of seed 0
    python -m benchmarks.prior --record                              tables, tests and records of all that is kept

Reads the data through the public readers (MMREC_DATA), works in `--folder`; a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.prior import report
from benchmarks.prior.measure import go_on, measure, steer, verify
from benchmarks.prior.people import DATASETS, build, study
from benchmarks.prior.rows import REFERENCES, Bench, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(DATASETS), help="one data set; default: all")
    parser.add_argument("--folder", type=Path, default=Path("workspaces/proof"))
    parser.add_argument("--seeds", default="", help="test seeds with commas between, of 0 to 4")
    parser.add_argument("--choose", action="store_true", help="ask the people set aside for choices")
    parser.add_argument("--rows", help="names of rows with semicolons between; default: all")
    parser.add_argument("--steering", action="store_true", help="only the curves of steering, of seed 0")
    parser.add_argument("--record", action="store_true", help="print tables, write records")
    options = parser.parse_args()
    wanted = options.rows.split(";") if options.rows else list(rows())
    seeds: list[int | None] = [0] if options.steering else [int(seed) for seed in options.seeds.split(",") if seed]
    for name in [options.set] if options.set else list(DATASETS):
        for seed in [None, *seeds] if options.choose else seeds:
            build(name, options.folder)
            told = "aside" if seed is None else f"seed-{seed}"
            bench = Bench(study(name, seed, options.folder), options.folder / "models" / name / told)
            if not options.steering:
                for row in wanted if seed == 0 else [row for row in wanted if row not in REFERENCES]:
                    measure(bench, row, rows()[row], options.folder / "measured" / name / told)
                verify(bench, options.folder / "measured" / name / told)
                go_on(bench, options.folder / "measured" / name / told)
            if seed == 0:
                steer(bench, options.folder / "measured" / name / told)
        if options.choose:
            report.show(name, options.folder / "measured" / name, ["aside"])
    if options.record:
        report.record(options.folder / "measured")


main()
