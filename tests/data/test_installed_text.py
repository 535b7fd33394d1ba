"""Text of installed packages: one document per file, without repeats, the same every time."""

import json

import pytest

from hypenet_jax.data.installed_text import docstrings, write_installed_text
from hypenet_jax.data.sources import documents

ENGLISH = [
    f"Number {i} is one of the lines that say what it is for, and how it is used."
    for i in range(30)
]
CODE = [f"variable_{i} = compute_something_else({i}, argument=variable_{i - 1})" for i in range(60)]


def module(documentation: list[str], code: list[str]) -> str:
    return "\n".join(('"""', *documentation, '"""', *code))


def kinds(folder) -> dict[str, str]:
    lines = (folder / "text.jsonl").read_text("utf-8").splitlines()
    return {line["name"].partition("/")[2]: line["kind"] for line in map(json.loads, lines)}


@pytest.fixture
def packages(tmp_path):
    root = tmp_path / "packages"
    for name, text in {
        "a/said.py": module(ENGLISH, CODE[:3]),
        "b/code.py": module([], CODE),
        "b/page.md": "\n".join(line.replace("Number", "Page") for line in ENGLISH),
        "b/tests/test_code.py": module([], CODE[::-1]),
        "c/again.md": "\n".join([*ENGLISH, "and one line that is new in this file of all files"]),
        "c/short.md": ENGLISH[0],
        "c/other.md": "\n".join(line.translate({110: 241, 101: 233}) for line in ENGLISH),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


def test_a_file_is_one_document_and_what_repeats_is_short_or_is_not_english_is_left_out(
    packages, tmp_path
):
    source = write_installed_text(tmp_path / "text", [packages])
    assert kinds(tmp_path / "text") == {
        "a/said.py": "documentation",
        "b/page.md": "documentation",
        "b/code.py": "source",
    }
    said, *_ = documents(source)
    assert said.text == "\n".join(ENGLISH)


def test_text_that_is_there_is_kept_though_the_packages_changed(packages, tmp_path):
    write_installed_text(tmp_path / "text", [packages])
    (packages / "b/page.md").unlink()
    write_installed_text(tmp_path / "text", [packages])
    assert "b/page.md" in kinds(tmp_path / "text")


def test_there_is_no_more_source_than_documentation(packages, tmp_path):
    for i in range(4):
        code = (
            f"another_{i}_{j} = something_else_of_{i}({j}, value=another_{i})" for j in range(90)
        )
        (packages / f"b/more_{i}.py").write_text("\n".join(code), "utf-8")
    source = write_installed_text(tmp_path / "text", [packages])
    found, sizes = kinds(tmp_path / "text"), {"documentation": 0, "source": 0}
    for kind, document in zip(found.values(), documents(source), strict=True):
        sizes[kind] += len(document.text or "")
    assert 0 < sizes["source"] <= sizes["documentation"]


def test_folders_without_text_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no documentation or source below .*nothing"):
        write_installed_text(tmp_path / "text", [tmp_path / "nothing"])


def test_docstrings_stand_below_the_names_of_what_they_document():
    source = '"""Of all."""\nclass A:\n    """Of A."""\n    def f(self):\n        """Of f."""\n'
    assert docstrings(source) == "Of all.\n\nA\n\nOf A.\n\nA.f\n\nOf f."
    assert docstrings("def broken(:") == ""
