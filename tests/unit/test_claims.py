import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_claims_says_what_is_stored():
    claims = runpy.run_path(str(ROOT / "bench" / "claims.py"))
    assert claims["PAGE"].read_text(encoding="utf-8") == claims["page"](), "run python bench/claims.py"
