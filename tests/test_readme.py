"""The examples of README.md run and print what it says."""

import doctest
import pathlib

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


# Exported folders are read by Orbax, whose logging of a deprecated option is not what is shown here.
@pytest.mark.filterwarnings("default")
def test_examples_of_the_readme_print_what_they_say():
    results = doctest.testfile(str(README), module_relative=False)
    assert results.attempted > 15
    assert results.failed == 0
