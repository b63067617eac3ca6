"""The page of claims: it says what is stored, and under what conditions each figure was measured."""

from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import claims

    return claims


def test_the_page_of_claims_says_what_is_stored(claims):
    assert claims.PAGE.read_text(encoding="utf-8") == claims.page(), "run python bench/claims.py"


def test_every_row_has_a_verdict_its_conditions_and_a_command(claims):
    lines = [line for line in claims.page().split("\n## ", 1)[1].splitlines() if line.startswith("| ")]
    rows = [line.strip("| ").split(" | ") for line in lines if not line.startswith("| claim |")]
    assert len(rows) > 40
    for says, measured, verdict, under, command in rows:
        assert says and measured and under and command.startswith("`")
        assert verdict.partition(",")[0] in ("held", "not held", "undecided")


def test_the_page_opens_with_five_findings_that_have_figures(claims):
    opening = claims.page().split("\nOur experiments", 1)[0]
    findings = [line for line in opening.splitlines() if line[:1].isdecimal()]
    assert len(findings) == 5
    assert all(line.count("**") == 2 and ("three seeds" in line or "all 9 runs" in line) for line in findings)
