"""The examples of README.md and docs/ run and print what they say."""

import doctest
import pathlib

import pytest

pytestmark = pytest.mark.brief

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if ">>>" in page.read_text(encoding="utf-8")
]


# Exported folders are read by Orbax, whose logging of a deprecated option is not what is shown here.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_a_page_print_what_they_say(page):
    results = doctest.testfile(str(page), module_relative=False)
    assert results.attempted > 3
    assert results.failed == 0


def test_readme_and_the_page_on_embedding_have_examples():
    assert {"README.md", "embed.md"} <= {page.name for page in PAGES}
