"""Each role of a table has one column: the named one, else one of a default name."""

import pytest

from tasks.core.errors import UsageError
from tasks.data.table_format import TableFormat, choose_columns, is_header


def test_columns_with_default_names_need_no_option() -> None:
    names = ["id", "mark", "sentence", "source", "label"]
    expected = {"text": "sentence", "label": "label", "source": "source", "mark": "mark"}
    assert choose_columns(names, TableFormat(), "f.csv") == expected
    assert choose_columns(["label", "text"], TableFormat(), "f.csv") == {"text": "text", "label": "label"}
    assert choose_columns(["text", "label", "sentence"], TableFormat(), "f.csv")["text"] == "sentence"


def test_a_named_column_goes_before_the_default_one() -> None:
    names = ["sentence", "label", "original", "gold", "site"]
    wanted = {"text": "original", "label": "gold", "source": "site"}
    assert choose_columns(names, TableFormat(wanted), "f.csv") == wanted


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        (["a", "label"], {}, "no column 'sentence' for the text; it has 'a', 'label': --columns text=NAME,label=label"),
        (["text", "b"], {}, "no column 'label' for the label; it has 'text', 'b': --columns text=text,label=NAME"),
        ([], {}, "no column 'sentence' for the text; it has none: --columns text=NAME,label=NAME"),
        (["Text", "TEXT", "label"], {"text": "text"}, "no column 'text' for the text; it has 'Text', 'TEXT', 'label'"),
        (["text", "label"], {"mark": "star"}, "no column 'star' for the mark; it has 'text', 'label': --columns"),
        (["text", "label"], {"source": "site"}, "no column 'site' for the source; it has 'text', 'label': --columns"),
        (["label", "text", "label"], {}, "2 columns 'label'; expected one for the label"),
    ],
)
def test_a_missing_or_double_column_is_a_usage_error_that_lists_the_columns(
    names: list[str], wanted: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        choose_columns(names, TableFormat(wanted), "data/f.csv")
    assert str(caught.value).startswith(f"data/f.csv has {message}")


def test_a_message_about_columns_stays_short_and_printable() -> None:
    with pytest.raises(UsageError) as caught:
        choose_columns(["x" * 1000, "\x1b[31m\n", *map(str, range(100))], TableFormat(), "f.csv")
    shown = ", ".join([f"'{'x' * 40}'", r"'\x1b[31m\n'", *(f"'{i}'" for i in range(10))])
    assert str(caught.value) == (
        f"f.csv has no column 'sentence' for the text; it has {shown}: --columns text=NAME,label=NAME"
    )


def test_without_labels_only_the_text_column_counts() -> None:
    unlabelled = TableFormat(labelled=False)
    assert choose_columns(["label", "text", "label"], unlabelled, "f.csv") == {"text": "text"}
    named = TableFormat({"text": "said", "label": "gold", "mark": "star"}, labelled=False)
    assert choose_columns(["said", "text"], named, "f.csv") == {"text": "said"}
    with pytest.raises(UsageError) as caught:
        choose_columns(["a", "b"], unlabelled, "f.csv")
    assert str(caught.value) == "f.csv has no column 'sentence' for the text; it has 'a', 'b': --columns text=NAME"


@pytest.mark.parametrize(
    ("first", "columns", "labelled", "unlabelled"),
    [
        (b"sentence\tlabel", {}, True, True),
        (b"text", {}, False, True),
        (b"body\tlabel", {}, False, False),
        (b"body\tlabel", {"text": "body"}, True, True),
        (b"body", {"text": "body"}, False, True),
        (b"gj04\t1\t*\tsentence\r\n", {}, False, False),
        (b"gj04\t1\t*\tsentence\r\n", {"text": "body"}, False, True),
        (b"", {}, False, False),
    ],
)
def test_a_first_line_is_a_header_by_its_names(
    first: bytes, columns: dict[str, str], labelled: bool, unlabelled: bool
) -> None:
    found = [is_header(first, TableFormat(columns, labelled=known)) for known in (True, False)]
    assert found == [labelled, unlabelled]
