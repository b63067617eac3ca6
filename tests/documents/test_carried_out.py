"""README, docs, tutorial and notebooks are carried out, block by block and cell by cell: make docs-test."""

import json
import shutil

import pytest

from documents import (
    LARGEST,
    NOTEBOOKS,
    PAGES,
    PARTS_WITH_FIGURES,
    ROOT,
    TUTORIAL,
    TUTORIAL_FIGURES,
    blocks_of,
    measured_figures,
    pictures_of,
    run_notebook,
    run_page,
)
from forked import Forked

LIMIT = 1800
"""Seconds after which a page that has not ended is given up."""
CARRIED_OUT = [page for page in PAGES if any(block.is_run for block in blocks_of(page))]
CARRIED_OUT.sort(key=lambda page: page.name != "reading_a_run.md")  # what takes longest is begun first


@pytest.mark.parametrize("page", CARRIED_OUT, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_can_be_carried_out_as_it_stands(page, tmp_path, request):
    keep = request.config.getoption("--write-results")
    assert Forked(run_page, page, tmp_path).wait(LIMIT) == 0
    for picture in pictures_of(page):
        made = tmp_path / picture.name
        assert made.is_file(), f"no block of {page.name} makes {picture.name}"
        assert made.stat().st_size <= LARGEST
        if keep:
            shutil.copy(made, picture)
    if keep and page.parent == TUTORIAL and page.stem in PARTS_WITH_FIGURES:
        file = TUTORIAL_FIGURES / f"{page.stem}.json"
        file.write_text(json.dumps(measured_figures(tmp_path), indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_can_be_carried_out_cell_by_cell(notebook, tmp_path):
    assert Forked(run_notebook, notebook, tmp_path).wait(LIMIT) == 0
