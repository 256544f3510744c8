"""CSV files are the same tables in a spreadsheet and in pandas, and nothing in them is calculated."""

import csv
from pathlib import Path

import pandas as pd

from tasks.core.spreadsheet import write_csv


def test_what_a_spreadsheet_would_calculate_gets_an_apostrophe_and_the_rest_stays(tmp_path: Path) -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\uff1d1", 'a "b", c', "é = ü", "", "two\nlines"]
    write_csv(tmp_path / "a.csv", ["number", "text"], [(-1.5, text) for text in texts])
    content = (tmp_path / "a.csv").read_bytes()
    assert content.startswith(b'\xef\xbb\xbf"number","text"\r\n"-1.5","\'=1+1"')
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        _, *rows = csv.reader(file)
    assert [text for _, text in rows] == [f"'{text}" if i < 6 else text for i, text in enumerate(texts)]
    frame = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert frame["number"].tolist() == [-1.5] * len(texts)
