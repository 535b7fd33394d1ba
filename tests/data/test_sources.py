import gzip
import json
import sys

import pytest

from hypenet_jax.data.sources import (
    Document,
    JsonLines,
    Parquet,
    TextFiles,
    documents,
    source_files,
    source_fingerprint,
    standard_library,
)


def test_text_files_come_sorted_with_exclusions_and_undecodable_ones_marked(tmp_path):
    for name in ("b/2.txt", "a.txt", "skip/1.txt", "b/3.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    source = TextFiles(str(tmp_path), ("**/*.txt", "*.txt"), ("skip",))
    assert list(documents(source)) == [
        Document("a.txt", "a.txt"),
        Document("b/2.txt", "b/2.txt"),
        Document("latin.txt", None),
    ]


def test_json_lines_plain_and_compressed(tmp_path):
    lines = "\n".join(json.dumps({"text": f"t{i}"}) for i in range(2)).encode()
    (tmp_path / "a.jsonl").write_bytes(lines + b"\n\n\xff\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    found = list(documents(JsonLines(str(tmp_path), ("*.jsonl*",), "text")))
    assert found == [
        Document("a.jsonl:1", "t0"),
        Document("a.jsonl:2", "t1"),
        Document("a.jsonl:4", None),
        Document("b.jsonl.gz:1", "t0"),
        Document("b.jsonl.gz:2", "t1"),
    ]


@pytest.mark.parametrize("line", ['{"other": "x"}', '{"text": 3}', '["text"]', "{broken"])
def test_a_line_without_its_field_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2"):
        list(documents(JsonLines(str(tmp_path), ("*.jsonl",), "text")))


def test_parquet_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"t": ["x", "y"], "n": [1, 2]}), tmp_path / "a.parquet")
    found = list(documents(Parquet(str(tmp_path), ("*.parquet",), "t")))
    assert found == [Document("a.parquet:0", "x"), Document("a.parquet:1", "y")]
    with pytest.raises(ValueError, match=r"no column 'text'; it has \['t', 'n'\]"):
        list(documents(Parquet(str(tmp_path), ("*.parquet",), "text")))
    with pytest.raises(ValueError, match="row 0, column 'n' holds int"):
        list(documents(Parquet(str(tmp_path), ("*.parquet",), "n")))


def test_without_pyarrow_the_extra_to_install_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"hypenet-jax\[parquet\]"):
        list(documents(Parquet(str(tmp_path), ("*.parquet",), "t")))


def test_nothing_to_read_says_where_it_looked(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist; name a folder"):
        source_files(TextFiles(str(tmp_path / "absent"), ("*",)))
    (tmp_path / "a.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"a\.txt is a file; name a folder"):
        source_files(TextFiles(str(tmp_path / "a.txt"), ("*",)))
    with pytest.raises(FileNotFoundError, match="1 matched before the exclusions"):
        source_files(TextFiles(str(tmp_path), ("*.txt",), ("a*",)))


def test_fingerprint_follows_content_and_names_but_not_the_place(tmp_path):
    def fingerprint(folder, name, text):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
        return source_fingerprint(TextFiles(str(tmp_path / folder), ("*.txt",)))

    first = fingerprint("one", "a.txt", "text")
    assert fingerprint("two", "a.txt", "text") == first
    assert fingerprint("two", "a.txt", "next") != first
    assert fingerprint("three", "b.txt", "text") != first


def test_the_standard_library_has_no_tests_and_no_installed_packages():
    names = [path.as_posix() for path in source_files(standard_library()).values()]
    assert len(names) > 300
    assert names == sorted(names)
    assert not [n for n in names if "/site-packages/" in n or "/test/" in n or "/tests/" in n]
    assert [n for n in names if n.endswith("/json/decoder.py")]
