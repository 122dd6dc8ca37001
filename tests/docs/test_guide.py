"""The guide says what the examples do: its code is theirs, its output is what they print, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from tests.examples.example_runs import EXAMPLES, GUIDE, ROOT, RUN_TIMEOUT_S, run_example

PAGES = sorted(GUIDE.glob("[0-9][0-9]_*.md"))
LINKED = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_every_page_has_its_program() -> None:
    assert PAGES
    assert [page.stem for page in PAGES] == [path.stem for path in sorted(EXAMPLES.glob("[0-9][0-9]_*.py"))]
    contents = (GUIDE / "README.md").read_text()
    for page in PAGES:
        assert f"({page.name})" in contents and f"../../examples/{page.stem}.py" in contents, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_is_that_of_the_program(page: Path) -> None:
    source = (EXAMPLES / f"{page.stem}.py").read_text()
    quoted = blocks(page, "python")
    assert quoted, "a page without code teaches nothing"
    for block in quoted:
        assert f"\n{block}" in source, f"examples/{page.stem}.py does not contain this part of the page:\n{block}"
    seen = [source.index(block) for block in quoted]
    assert seen == sorted(seen), "the page quotes its program in another order"


@pytest.mark.timeout(RUN_TIMEOUT_S + 30)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_output_is_what_the_program_prints(page: Path) -> None:
    for module in {"08": ["sklearn"], "10": ["sklearn", "torch", "tensorboardX"]}.get(page.stem[:2], []):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    printed = run_example(f"{page.stem}.py").stdout
    for block in blocks(page, "text"):
        assert block in printed, f"examples/{page.stem}.py does not print this:\n{block}\nbut this:\n{printed}"


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What links to parts of a page may name: its headings, as browsers of repositories write them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, part in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(page)):
        if "://" in target:
            continue
        there = (page.parent / target) if target else page
        assert there.exists(), f"{page.relative_to(ROOT)} links to {target}, which does not exist"
        assert not part or part in anchors(there), (
            f"{page.relative_to(ROOT)} links to {target}#{part}, which is no heading"
        )
