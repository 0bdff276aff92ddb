"""Inputs are cut into the same rows and shards whoever reads them."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clasp_kernels.batch import Row, Source, open_source
from clasp_kernels.batch.source import BadInput


def opened(path: Path, question: str | None = None, **columns: str) -> Source:
    names = {"question_column": "question", "image_column": "image", **columns}
    return open_source(str(path), question=question, **names)


def read(source: Source, size: int) -> list[Row]:
    """Read all shards, the last first, each as another process would."""
    found = []
    for shard in pickle.loads(pickle.dumps(list(reversed(source.shards(size))))):
        rows = pickle.loads(pickle.dumps(source)).read(shard)
        assert len(rows) == shard.rows <= size
        found = rows + found
    return found


def lines(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(text + "\n" for text in texts))
    return path


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    rows = [{"image": f"{n}.png", "question": f"Is it {n}?"} for n in range(7)]
    return lines(tmp_path, *rows[:3], "", *rows[3:])


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Return a folder with two files, of one and of several row groups."""
    for name, numbers, group in (("a", range(3), 10), ("b", range(3, 11), 3)):
        table = pa.table(
            {
                "other": list(numbers),
                "image": [bytes([n]) for n in numbers],
                "question": [f"Is it {n}?" for n in numbers],
            }
        )
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=group)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a/c.JPG", "a/b.png", "notes.txt", ".hidden.png", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_jsonl_file(jsonl: Path) -> None:
    rows = read(opened(jsonl), 3)
    assert [row.position for row in rows] == list(range(7))
    assert [row.question for row in rows] == [f"Is it {n}?" for n in range(7)]
    assert rows[4].content == jsonl.parent / "4.png" and rows[4].image == "4.png"
    assert not [row for row in rows if row.error]


def test_parquet_files_are_one_table(parquet: Path) -> None:
    source = opened(parquet)
    assert source.rows == 11
    for size in (1, 2, 4, 11):
        rows = read(source, size)
        assert [row.position for row in rows] == list(range(11))
        assert [row.content for row in rows] == [bytes([n]) for n in range(11)]
        assert [row.question for row in rows] == [f"Is it {n}?" for n in range(11)]
    assert rows[3].image == "b.parquet#0"


def test_images_as_the_library_datasets_writes_them(tmp_path: Path) -> None:
    images = [{"bytes": b"x", "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    pq.write_table(pa.table({"picture": images}), tmp_path / "a.parquet")
    rows = read(opened(tmp_path / "a.parquet", "What?", image_column="picture"), 2)
    assert rows[0].content == b"x"
    assert rows[1].content == tmp_path / "b.png"
    assert rows[2].error == "picture must be a path or bytes, got None"


def test_a_folder_of_images(folder: Path) -> None:
    rows = read(opened(folder, "What is it?"), 2)
    assert [row.image for row in rows] == ["a/b.png", "a/c.JPG", "b.png"]
    assert rows[1].content == folder / "a/c.JPG"
    assert {row.question for row in rows} == {"What is it?"}


def test_a_name_that_is_not_utf8_and_a_link_to_nothing_stop_no_other_image(folder: Path) -> None:
    (folder / "c.png").symlink_to("nothing.png")
    (folder / os.fsdecode(b"d\xff.png")).write_bytes(b"x")
    rows = read(opened(folder, "What?"), 2)
    assert [row.image for row in rows[2:]] == ["b.png", "c.png", "d\udcff.png"]
    assert len({row.id for row in rows}) == 5


@pytest.mark.parametrize("inside", ["a.png", "a.parquet"])
def test_a_subfolder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: Any, inside: str
) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / inside).touch()
    real = os.scandir

    def scandir(path: Any) -> Any:  # root may read everything, so its permissions are no test
        if str(path).endswith("private"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match="private: Permission denied"):
        opened(tmp_path, "What?")


def test_a_table_as_spark_writes_it(tmp_path: Path) -> None:
    """A folder with the suffix of a file, and files beside the parts that are none."""
    table = tmp_path / "photos.parquet"
    (table / "_temporary").mkdir(parents=True)
    rows = pa.table({"image": ["a.png"], "question": ["What?"]})
    for name in ("part-00000-c000.snappy.parquet", "part-00001-c000.snappy.parquet"):
        pq.write_table(rows, table / name)
    for name in ("_SUCCESS", "_temporary/0.parquet", "_old.parquet", ".part-00000.parquet"):
        (table / name).write_bytes(b"no table")
    for given in (tmp_path, table):
        assert [row.content for row in read(opened(given), 2)] == [table / "a.png"] * 2


def test_ids_do_not_depend_on_shards_or_on_the_folder(jsonl: Path, tmp_path: Path) -> None:
    ids = [row.id for row in read(opened(jsonl), 3)]
    assert len(set(ids)) == 7
    (tmp_path / "elsewhere").mkdir()
    moved = jsonl.rename(tmp_path / "elsewhere" / "other.jsonl")
    assert [row.id for row in read(opened(moved), 2)] == ids
    asked = [row.id for row in read(opened(moved, "What?"), 2)]
    assert all(
        one[:10] == other[:10] and one != other for one, other in zip(asked, ids, strict=True)
    )


def test_ids_of_images_in_bytes_depend_on_the_bytes() -> None:
    rows = [Row(0, "a.parquet#0", content, "What?") for content in (b"x", b"y")]
    assert rows[0].id != rows[1].id


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", "the line is not valid JSON"),
        ("[1]", "it must be an object, got list"),
        ({"image": "a.png"}, "question must be a text, got None"),
        ({"image": "a.png", "question": 5}, "question must be a text, got 5"),
        ({"image": "a.png", "question": " "}, "question is empty"),
        ({"question": "What?"}, "image must be a path or bytes, got None"),
        ({"image": "a\0.png", "question": "What?"}, "image must be a path or bytes"),
        ({"image": "\ud800", "question": "What?"}, "the line is not valid JSON"),
    ],
)
def test_a_bad_line_is_a_row_with_an_error(tmp_path: Path, line: Any, error: str) -> None:
    good = {"image": "a.png", "question": "What?"}
    rows = read(opened(lines(tmp_path, line, good)), 2)
    assert error in (rows[0].error or "") and rows[1].error is None
    assert rows[0].id.startswith("000000000-")


def test_damage_in_a_parquet_file_is_an_error_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    images = [bytes([n]) * 500 for n in range(8)]
    table = pa.table({"image": images, "question": ["What?"] * 8})
    pq.write_table(table, path, row_group_size=4, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    second = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content[second : second + 40] = b"\xff" * 40
    path.write_bytes(content)
    rows = read(opened(path), 4)
    assert [row.error is None for row in rows] == [True] * 4 + [False] * 4
    assert "a.parquet cannot be read here" in (rows[5].error or "")
    assert len({row.id for row in rows}) == 8


def not_utf8(name: str) -> pa.Table:
    """Return a table whose middle row is not UTF-8 in a column."""
    values = {"image": ["a.png", "b.png", "c.png"], "question": ["A?", "B?", "C?"]}
    table = pa.table(values)
    bad = pa.array([b"x", b"\xff\xfe", b"z"]).cast(pa.string(), safe=False)
    assert bad.type == pa.string()
    return table.set_column(table.schema.get_field_index(name), name, bad)


@pytest.mark.parametrize("name", ["image", "question"])
def test_a_value_that_is_not_utf8_is_an_error_of_its_row(tmp_path: Path, name: str) -> None:
    pq.write_table(not_utf8(name), tmp_path / "a.parquet")
    rows = read(opened(tmp_path / "a.parquet"), 2)
    assert [row.error for row in rows] == [
        None,
        f"{name} must be valid UTF-8, got the byte 0xff",
        None,
    ]
    assert rows[1].image == "a.parquet#1" and len({row.id for row in rows}) == 3


def test_a_parquet_file_is_named_in_utf8(parquet: Path) -> None:
    (parquet / "a.parquet").rename(parquet / os.fsdecode(b"\xff.parquet"))
    with pytest.raises(BadInput, match="must have a name that is valid UTF-8"):
        opened(parquet)


def test_another_input_has_another_fingerprint(jsonl: Path) -> None:
    before = opened(jsonl).fingerprint
    assert opened(jsonl).fingerprint == before
    with jsonl.open("a") as file:
        file.write('{"image": "9.png", "question": "Is it 9?"}\n')
    assert opened(jsonl).fingerprint != before


def test_other_parquet_files_have_another_fingerprint(parquet: Path) -> None:
    before = opened(parquet).fingerprint
    assert opened(parquet).fingerprint == before
    table = pq.read_table(parquet / "b.parquet")
    pq.write_table(table.slice(1), parquet / "b.parquet")
    assert opened(parquet).fingerprint != before


def test_other_images_have_another_fingerprint(folder: Path) -> None:
    before = opened(folder, "What?").fingerprint
    (folder / "b.png").write_bytes(b"xy")
    assert opened(folder, "What?").fingerprint != before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda at: at / "none.csv", r"must be a \.parquet file, a \.jsonl file, or a folder"),
        (lambda at: at, "has no rows"),
        (lambda at: lines(at), "has no rows"),
        (lambda at: lines(at, {"picture": "a.png"}), "has no field 'image' in its first 1 lines"),
        (lambda at: table(at, {"image": ["a"]}), "has no column 'question'; its columns are image"),
        (lambda at: broken(at), "is not a Parquet file that can be read"),
        (lambda at: both(at), "has both: a.parquet and a.png"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, make: Any, said: str) -> None:
    path = make(tmp_path)
    with pytest.raises(BadInput, match=said) as raised:
        opened(path, "What?" if path == tmp_path else None)
    assert re.search(re.escape(str(path)), str(raised.value)) or path == tmp_path


def test_a_folder_of_images_needs_a_question(folder: Path) -> None:
    with pytest.raises(BadInput, match="give --question"):
        opened(folder)


def table(folder: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


def broken(folder: Path) -> Path:
    (folder / "a.parquet").write_bytes(b"PAR1")
    return folder / "a.parquet"


def both(folder: Path) -> Path:
    table(folder, {"image": ["a"]})
    (folder / "a.png").touch()
    return folder
