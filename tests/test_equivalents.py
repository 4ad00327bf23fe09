"""The mutants that change nothing are named by the lines that they change: a line that is gone has no place there."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_lines_of_equivalent_mutants_are_in_the_code() -> None:
    known = tomllib.loads((ROOT / "tests" / "mutants" / "equivalents.toml").read_text())["mutant"]
    code = {one["module"]: [line.strip() for line in (ROOT / one["module"]).read_text().splitlines()] for one in known}
    stale = [one for one in known if not set(one["before"].split("\n")) <= set(code[one["module"]])]
    assert len(known) > 50 and not stale
