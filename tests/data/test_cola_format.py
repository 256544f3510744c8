"""The parser accounts for every line of any file: kept, or quarantined with a reason; Arrow and Python agree."""

import io
import itertools
from collections.abc import Mapping

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tasks.data import cola_format as parsing
from tasks.data.cola_format import (
    BYTE_ORDER_MARK,
    ROW_SCHEMA,
    TSV_COLUMNS,
    QuarantinedRow,
    Row,
    RowRules,
    format_row,
    format_rows,
    parse_by_line,
    parse_row,
    parse_tsv,
    read_lines,
    to_blocks,
)

unhurried = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong
thorough = settings(unhurried, max_examples=150)

CLEAN = "gj04\t1\t\tThe sailors rode the breeze clear of the rocks.\ngj04\t0\t*\tThe sailors rode.\n"
ROWS = [
    Row(1, "gj04", 1, "", "The sailors rode the breeze clear of the rocks."),
    Row(2, "gj04", 0, "*", "The sailors rode."),
]
SWAPPED = {"0": 1, "1": 0}
WORDS = {"0": 0, "1": 1, "good": 1, "bad": 0, "ungrammatical, but used": 0}

# Arbitrary bytes hardly ever have three tabs and a label; pieces of the format reach every branch.
pieces = st.sampled_from(
    [b"\t", b"\n", b"\r\n", b"\r", b"0", b"1", b"*", b"\0", b'"', b" ", b"\xff", BYTE_ORDER_MARK, "é\u2028".encode()]
)
files = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(pieces, st.just(b"s\t1\t\tA word.\n"), st.binary(max_size=4)), max_size=40).map(b"".join),
)

# What is whitespace to Python or to Arrow, what readers take for special, and what only looks empty.
SPACES = [" ", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2028", "\u2029", "\u202f", "\u3000"]
INVISIBLE = ["\x7f", "\xad", "\u180e", "\u200b", "\u0301", "\ufe0f", "\ue000", "\U000e0001", "\u0378"]
SPECIAL = ["", '"', '""', "'", "\\", "#", "NA", "null", "nan", "#N/A", "a", "1", "$", "寿司", "🙂", "ﬁ"]
odd = st.sampled_from([*SPACES, *INVISIBLE, *SPECIAL])
fields = st.lists(
    st.one_of(odd, st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0\ufeff"))), max_size=3
).map("".join)
lines_of_format = st.builds(
    lambda source, label, mark, sentence, end: f"{source}\t{label}\t{mark}\t{sentence}{end}".encode(),
    fields,
    st.sampled_from(["0", "1"]),
    fields,
    fields,
    st.sampled_from(["\n", "\r\n"]),
)
nearly_clean = st.lists(lines_of_format, min_size=1, max_size=6).map(b"".join)


def parse(data: bytes, rules: RowRules = RowRules()) -> list[Row | QuarantinedRow]:  # noqa: B008 (immutable)
    """Return the result of each line in the order of the lines."""
    results: list[Row | QuarantinedRow] = []
    for block in parse_tsv(io.BytesIO(data), rules):
        results += [*rows_of(block.kept), *block.quarantined]
    return sorted(results, key=lambda result: result.line)


def rows_of(kept: pa.Table) -> list[Row]:
    return [Row(**row) for row in kept.to_pylist()]


def kept_of(data: bytes) -> list[Row]:
    return [result for result in parse(data) if isinstance(result, Row)]


@unhurried
@given(files)
@example(b"")
@example(b"\n")
@example(b"a\nb")
@example(BYTE_ORDER_MARK)
@example(BYTE_ORDER_MARK + b"\n")
@example(BYTE_ORDER_MARK * 2 + b"s\t1\t\tA.\n")
@example(b"s\t1\t\tA.\r\r\n")
def test_every_line_of_any_file_has_one_result_with_its_number(data: bytes) -> None:
    results = parse(data)
    lines = list(io.BytesIO(data.removeprefix(BYTE_ORDER_MARK)))
    assert [result.line for result in results] == list(range(1, len(lines) + 1))
    assert all(result.kind and result.reason for result in results if isinstance(result, QuarantinedRow))


@unhurried
@given(files)
@example("s\t1\t\tline\u2028separator\x0b\x0c\x85\n".encode())
def test_kept_rows_survive_being_written_and_read_again(data: bytes) -> None:
    kept = kept_of(data)
    again = parse("".join(map(format_row, kept)).encode())
    assert [row[1:] for row in again] == [row[1:] for row in kept]


@unhurried
@given(files)
def test_a_table_is_written_as_its_rows_are(data: bytes) -> None:
    for block in parse_tsv(io.BytesIO(data)):
        assert format_rows(block.kept) == "".join(map(format_row, rows_of(block.kept))).encode()


@unhurried
@given(files)
def test_quarantined_bytes_and_kept_rows_hold_all_that_stood_in_the_file(data: bytes) -> None:
    lines = [line.removesuffix(b"\n").removesuffix(b"\r") for line in io.BytesIO(data.removeprefix(BYTE_ORDER_MARK))]
    for result, line in zip(parse(data), lines, strict=True):
        raw = result.raw if isinstance(result, QuarantinedRow) else format_row(result).encode().removesuffix(b"\n")
        assert raw == line


def test_a_row_is_split_at_its_tabs_and_counted_from_one() -> None:
    assert parse(CLEAN.encode()) == ROWS


@pytest.mark.parametrize(
    ("raw", "kind", "reason"),
    [
        (b"s\t1\t\t\xff", "encoding", "not UTF-8"),
        (b"s\t1\t\t\xed\xa0\x80", "encoding", "not UTF-8"),
        (b"\xff\t1", "encoding", "not UTF-8"),
        (b"s\t1\t\tA\0B", "NUL", "NUL character"),
        (b"\0\t1\t\tA", "NUL", "NUL character"),
        (b"s\t1\t\tA\rB", "line break", "line break or tab inside a field"),
        (b"s\r\t1\t\tA", "line break", "line break or tab inside a field"),
        (BYTE_ORDER_MARK + b"s\t1\t\tA", "byte order mark", "byte order mark inside the file"),
        (b"", "field count", "1 field instead of 4"),
        (b"s\t1\tA word.", "field count", "3 fields instead of 4"),
        (b"s\t1\t\tA word.\textra", "field count", "5 fields instead of 4"),
        (b"s\t1\t\tA word.\t", "field count", "5 fields instead of 4"),
        (b"s\t2\t\tA word.", "label", "label '2' instead of 0 or 1"),
        (b"s\t\t\tA word.", "label", "label '' instead of 0 or 1"),
        (b"s\t1.5\t\tA word.", "label", "label '1.5' instead of 0 or 1"),
        (b"s\t01\t\tA word.", "label", "label '01' instead of 0 or 1"),
        (b"s\ttrue\t\tA word.", "label", "label 'true' instead of 0 or 1"),
        ("s\t²\t\tA word.".encode(), "label", "label '²' instead of 0 or 1"),
        (b"s\t" + b"9" * 50 + b"\t\tA", "label", f"label '{'9' * 20}' instead of 0 or 1"),
        (b"s\t1\t\t", "empty sentence", "empty sentence"),
        (b"s\t1\t\t \xc2\xa0 ", "empty sentence", "empty sentence"),
        ("s\t1\t\t\u3000\u2028\x1c".encode(), "empty sentence", "empty sentence"),
        (b"s\t1\t\t123456789", "too long", "sentence of 9 characters, more than 8"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason_and_its_bytes(
    raw: bytes, kind: parsing.QuarantineReason, reason: str
) -> None:
    label = raw.decode().split("\t")[1] if kind == "label" else None
    quarantined = QuarantinedRow(7, kind, reason, raw, label)
    assert parse_row(7, raw, RowRules(max_chars=8)) == quarantined
    # The same within a file, between good rows.
    data = b"s\t1\t\tA.\n" * 6 + raw + b"\ns\t0\t\tB.\n"
    results = parse(data, RowRules(max_chars=8))
    assert results[6] == quarantined
    assert [result.line for result in results if isinstance(result, Row)] == [1, 2, 3, 4, 5, 6, 8]


@pytest.mark.parametrize(
    "data",
    [
        CLEAN.encode(),
        CLEAN.replace("\n", "\r\n").encode(),
        CLEAN.replace("\n", "\r\n", 1).encode(),
        CLEAN.encode().removesuffix(b"\n"),
        CLEAN.replace("\n", "\r\n").encode().removesuffix(b"\r\n"),
        BYTE_ORDER_MARK + CLEAN.encode(),
        BYTE_ORDER_MARK + CLEAN.replace("\n", "\r\n").encode(),
    ],
    ids=["lf", "crlf", "both", "lf-unended", "crlf-unended", "bom", "bom-crlf"],
)
def test_line_ends_and_byte_order_mark_do_not_change_rows(data: bytes) -> None:
    assert parse(data) == ROWS


def test_length_limit_counts_characters_and_includes_the_limit() -> None:
    assert parse("s\t1\t\téé寿司🙂\n".encode(), RowRules(max_chars=5)) == [Row(1, "s", 1, "", "éé寿司🙂")]
    assert parse("s\t1\t\téé寿司🙂.\n".encode(), RowRules(max_chars=5)) == [
        QuarantinedRow(1, "too long", "sentence of 6 characters, more than 5", "s\t1\t\téé寿司🙂.".encode())
    ]


MISSING_IN_PANDAS = ["NA", "null", "NULL", "None", "nan", "NaN", "N/A", "#N/A"]


def test_words_that_other_readers_take_for_missing_or_for_numbers_stay_text() -> None:
    for text in [*MISSING_IN_PANDAS, "-", "1e5", "0012"]:
        assert parse(f"{text}\t1\t{text}\t{text}\n".encode()) == [Row(1, text, 1, text, text)]


def test_pandas_makes_a_missing_value_of_such_a_word() -> None:
    """The reason for a parser of our own."""
    for text in MISSING_IN_PANDAS:
        read = pd.read_csv(io.BytesIO(f"s\t1\t*\t{text}\ns\t0\t*\tA.\n".encode()), sep="\t", header=None)
        assert read[3].isna().tolist() == [True, False], text


@pytest.mark.parametrize("sentence", ['"', '"Quoted."', 'He said "go', "it's", "a, b; c", "back\\tslash", '""', "#"])
def test_quotes_and_separators_of_other_formats_are_kept_literally(sentence: str) -> None:
    data = f"s\t1\t\t{sentence}\ns\t0\t*\tNext.\n".encode()
    assert parse(data) == [Row(1, "s", 1, "", sentence), Row(2, "s", 0, "*", "Next.")]


def test_lone_quotes_swallow_rows_in_pandas_and_none_here() -> None:
    data = b's\t1\t\t"Go, he said.\ns\t0\t*\tSwallowed.\ns\t1\t\t"Stop, he said.\ns\t1\t\tLast.\n'
    assert len(pd.read_csv(io.BytesIO(data), sep="\t", header=None)) == 2
    assert [row.sentence for row in kept_of(data)] == ['"Go, he said.', "Swallowed.", '"Stop, he said.', "Last."]


def test_five_fields_shift_columns_in_pandas_and_are_quarantined_here() -> None:
    data = b"s\t1\t\tA.\t0\nt\t0\t*\tB.\t1\n"
    shifted = pd.read_csv(io.BytesIO(data), sep="\t", names=TSV_COLUMNS)
    assert (shifted.index.tolist(), shifted["sentence"].tolist()) == (["s", "t"], [0, 1])
    assert parse(data) == [
        QuarantinedRow(1, "field count", "5 fields instead of 4", b"s\t1\t\tA.\t0"),
        QuarantinedRow(2, "field count", "5 fields instead of 4", b"t\t0\t*\tB.\t1"),
    ]


def test_carriage_returns_end_rows_in_pandas_and_not_here() -> None:
    data = b"s\t1\t\tA\rB\n"
    assert len(pd.read_csv(io.BytesIO(data), sep="\t", header=None)) == 2
    assert parse(data) == [QuarantinedRow(1, "line break", "line break or tab inside a field", b"s\t1\t\tA\rB")]


@pytest.mark.parametrize("mark", ["*", "?", "??", "", " "])
def test_source_and_mark_are_kept_unchanged(mark: str) -> None:
    assert parse(f" x \t0\t{mark}\t A. \n".encode()) == [Row(1, " x ", 0, mark, " A. ")]


def test_labels_may_have_other_names() -> None:
    data = b"s\tgood\t\tA.\ns\tbad\t\tB.\ns\t1\t\tC.\ns\t0\t\tD.\ns\tungrammatical, but used\t\tE.\n"
    assert [row.label for row in rows_of(next(parse_tsv(io.BytesIO(data), RowRules(labels=WORDS))).kept)] == [
        1,
        0,
        1,
        0,
        0,
    ]


def test_plain_labels_can_mean_the_opposite_or_nothing() -> None:
    results = parse(CLEAN.encode(), RowRules(labels=SWAPPED))
    assert [(result.line, result[2]) for result in results] == [(1, 0), (2, 1)]
    rules = RowRules(labels={"yes": 1, "no": 0})
    assert parse(b"s\t1\t\tA.\ns\tyes\t\tB.\n", rules) == [
        QuarantinedRow(1, "label", "label '1' instead of no or yes", b"s\t1\t\tA.", "1"),
        Row(2, "s", 1, "", "B."),
    ]
    assert parse(b"s\t1\t\tA.\n", rules) == [
        QuarantinedRow(1, "label", "label '1' instead of no or yes", b"s\t1\t\tA.", "1")
    ]


def check_fast_way(lines: bytes, rules: RowRules) -> bool:
    """Return whether the fast way gave an answer, which must be the slow one's."""
    fast, (slow,) = parsing._parse_clean(5, lines, rules), parse_by_line(5, lines, rules)
    if fast is None:
        return False
    fast.kept.validate(full=True)
    assert fast.quarantined == slow.quarantined == []
    assert fast.kept.schema == slow.kept.schema == ROW_SCHEMA
    assert fast.kept.equals(slow.kept)
    return True


@thorough
@given(
    st.one_of(nearly_clean, files.filter(bool)),
    st.sampled_from([2_000, 3, 1]),
    st.sampled_from([parsing.DEFAULT_LABELS, SWAPPED, WORDS, {"yes": 1}]),
)
@example(b"\t1\t\tA", 2_000, parsing.DEFAULT_LABELS)
@example(b"\n\n", 2_000, parsing.DEFAULT_LABELS)
@example(b"s\t1\t\tA.\n\ns\t1\t\tB.\n", 2_000, parsing.DEFAULT_LABELS)
@example(b"s\t1\t\tA.\n\n", 2_000, parsing.DEFAULT_LABELS)
@example(b's\t1\t"\tA.\ns\t1\t"\tB.\n', 2_000, parsing.DEFAULT_LABELS)
@example(b"s\t1\t\tA.\r", 2_000, parsing.DEFAULT_LABELS)
@example(b"s\t1\t\tA.", 2_000, {})
def test_the_fast_way_equals_the_slow_way(lines: bytes, max_chars: int, labels: Mapping[str, int]) -> None:
    check_fast_way(lines, RowRules(max_chars, labels))


@unhurried
@given(st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0\ufeff"), min_size=1, max_size=3))
@example("\x1c")
@example("\x85")
@example("\u2028")
@example("\xa0")
@example("\u3000")
@example("\u200b")
@example('"')
@example("NA")
def test_the_fast_way_knows_an_empty_sentence_in_every_script(sentence: str) -> None:
    check_fast_way(f"s\t1\t\t{sentence}\n".encode(), RowRules())


def test_the_fast_way_calls_the_same_characters_empty_as_python() -> None:
    letters = [chr(i) for i in range(1, 0x20000) if not 0xD800 <= i < 0xE000 and chr(i) not in "\t\n\r\ufeff"]
    spaces = [letter for letter in letters if not letter.strip()]
    assert len(spaces) == 26
    for space in spaces:
        assert not check_fast_way(f"s\t1\t\t{space}\n".encode(), RowRules())
    solid = [letter for letter in letters if letter.strip()]
    pages = ["".join(f"s\t1\t\t{x}\n" for x in solid[i : i + 256]).encode() for i in range(0, len(solid), 256)]
    assert sum(check_fast_way(page, RowRules()) for page in pages) > 150  # the others hold a mark or nothing yet


@pytest.mark.parametrize(
    "data",
    [
        CLEAN.encode(),
        CLEAN.replace("\n", "\r\n").encode(),
        b's\t1\t\t"A\ns\t0\tNA\tnull\n',
        b"s\t1\t\tA",
        "s\t1\t\t寿司\n".encode(),
    ],
    ids=["lf", "crlf", "quotes", "unended", "unicode"],
)
def test_clean_blocks_take_the_fast_way(data: bytes) -> None:
    assert check_fast_way(data, RowRules())


@unhurried
@given(st.one_of(files, nearly_clean), st.integers(1, 12))
@example(b"s\t1\t\tA.\r\ns\t1\t\tB.\r\n", 8)
@example(BYTE_ORDER_MARK + b"\n\n\n", 1)
def test_blocks_of_any_size_give_the_same_results(data: bytes, size: int) -> None:
    expected = parse(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "READ_BYTES", size)
        assert parse(data) == expected


def test_rows_are_numbered_over_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "READ_BYTES", 100)
    data = b"".join(b"bad\n" if i % 7 == 3 else b"s\t1\t\tA.\n" for i in range(500))
    blocks = list(parse_tsv(io.BytesIO(data)))
    assert len(blocks) > 30
    assert any(block.quarantined for block in blocks)
    assert not all(block.quarantined for block in blocks)
    assert [result.line for result in parse(data) if isinstance(result, QuarantinedRow)] == list(range(4, 501, 7))
    assert [result.line for result in parse(data)] == list(range(1, 501))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_endless_line_is_quarantined_once_and_the_next_rows_are_right(
    monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    monkeypatch.setattr(parsing, "MAX_LINE_BYTES", 20)
    long = b"s\t1\t\t" + b"x" * 300
    data = end.join([b"s\t1\t\tA.", long, b"s\t0\t\tB.", long, long, b"bad", b"s\t1\t\tC."])
    reason = "line of more than 20 bytes"
    expected = [
        Row(1, "s", 1, "", "A."),
        QuarantinedRow(2, "too long", reason, long[:20]),
        Row(3, "s", 0, "", "B."),
        QuarantinedRow(4, "too long", reason, long[:20]),
        QuarantinedRow(5, "too long", reason, long[:20]),
        QuarantinedRow(6, "field count", "1 field instead of 4", b"bad"),
        Row(7, "s", 1, "", "C."),
    ]
    for block in (1, 3, 7, 64, 1 << 20):
        monkeypatch.setattr(parsing, "READ_BYTES", block)
        assert parse(data) == expected, f"blocks of {block} bytes"
    assert parse(long) == [QuarantinedRow(1, "too long", reason, long[:20])]


@pytest.mark.parametrize("length", [19, 20, 21, 22])
def test_the_longest_line_is_measured_without_its_end(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(parsing, "MAX_LINE_BYTES", 20)
    line = b"s\t1\t\t" + b"x" * (length - 5)
    kept = Row(1, "s", 1, "", "x" * (length - 5))
    expected = kept if length <= 20 else QuarantinedRow(1, "too long", "line of more than 20 bytes", line[:20])
    for block, end in itertools.product((1, 3, 7, 64), (b"", b"\n", b"\r\n")):
        monkeypatch.setattr(parsing, "READ_BYTES", block)
        assert parse(line + end) == [expected], (block, end)


@unhurried
@given(files, st.integers(1, 12), st.integers(1, 12))
@example(b"0123\rmore\ns\n", 2, 4)  # the first block ends with a CR that is no line end
def test_long_lines_fall_out_whatever_the_blocks_are(data: bytes, block: int, longest: int) -> None:
    lines = list(io.BytesIO(data.removeprefix(BYTE_ORDER_MARK)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "MAX_LINE_BYTES", longest)
        patch.setattr(parsing, "READ_BYTES", block)
        results = parse(data)
        whole = [
            parse_row(i, line.removesuffix(b"\n").removesuffix(b"\r"), RowRules()) for i, line in enumerate(lines, 1)
        ]
    assert results == whole


@unhurried
@given(files, st.integers(1, 12), st.integers(1, 12))
def test_lines_are_read_whole_or_too_long_as_well(data: bytes, block: int, longest: int) -> None:
    lines = list(io.BytesIO(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "MAX_LINE_BYTES", longest)
        patch.setattr(parsing, "READ_BYTES", block)
        found = list(read_lines(io.BytesIO(data)))
    assert len(found) == len(lines)
    for line, whole in zip(found, lines, strict=True):
        contents = [each.removesuffix(b"\n").removesuffix(b"\r") for each in (line, whole)]
        assert contents[0][: longest + 1] == contents[1][: longest + 1]
        assert len(line) <= longest + len(BYTE_ORDER_MARK) + len(b"\r\n\n")
        assert line == whole or len(contents[0]) > longest


def test_results_are_divided_in_order() -> None:
    bad = QuarantinedRow(2, "NUL", "NUL character", b"")
    (block,) = to_blocks([ROWS[0], bad, ROWS[1]._replace(line=3)])
    assert rows_of(block.kept) == [ROWS[0], ROWS[1]._replace(line=3)]
    assert block.quarantined == [bad]
    assert list(to_blocks([])) == []
    assert next(to_blocks([bad])).kept.num_rows == 0
    assert next(to_blocks([bad])).kept.schema == ROW_SCHEMA
