"""Files, CSV lines and time stamps as every command writes them."""

import csv
import io
import os
import re
import shutil
import time
from datetime import datetime
from pathlib import Path

import pytest

from adafocus_edge.errors import AdaFocusError, BundleError, UsageError
from adafocus_edge.system.csv_lines import csv_header, csv_line
from adafocus_edge.system.files import check_different, check_overwrites, writable
from adafocus_edge.system.timestamps import iso, iso_now, stamp


def test_a_failed_write_names_the_file_and_the_reason(tmp_path):
    path = tmp_path / "no such folder" / "results.json"
    with pytest.raises(AdaFocusError) as found, writable(path):
        path.write_text("{}")
    assert str(found.value) == f"{path}: cannot be written (No such file or directory)"
    assert isinstance(found.value.__cause__, FileNotFoundError)
    full = Path("/dev/full")
    message = r"^/dev/full: cannot be written \(No space left on device\)$"
    with pytest.raises(BundleError, match=message), writable(full, BundleError):
        full.write_bytes(b"x" * 10)


def test_of_several_files_that_cannot_be_copied_the_first_reason_is_given(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "link").symlink_to(tmp_path / "missing")
    message = r"to: cannot be written \(No such file or directory\)"
    with pytest.raises(AdaFocusError, match=message), writable(tmp_path / "to"):
        shutil.copytree(tmp_path / "from", tmp_path / "to")


def test_an_output_is_no_input_by_any_name(tmp_path):
    labels, bundle = tmp_path / "labels.csv", tmp_path / "bundle"
    labels.write_text("video,class")
    bundle.mkdir()
    (tmp_path / "link.csv").symlink_to(labels)
    os.link(labels, tmp_path / "hard.csv")
    inputs = (labels, None, tmp_path / "missing.csv", bundle)
    for output in (labels, tmp_path / "link.csv", tmp_path / "hard.csv", bundle / "new.json", bundle / "in" / "x.json"):
        with pytest.raises(UsageError, match=f"^--output {output}: is an input or lies in one"):
            check_overwrites({"--plot": None, "--output": output}, inputs)
    null = Path("/dev/null")
    check_overwrites({"--output": tmp_path / "new" / "x.json", "--plot": null}, (*inputs, null))


def test_two_outputs_are_two_files(tmp_path):
    report, link, null = tmp_path / "new.json", tmp_path / "link", Path("/dev/null")
    link.symlink_to(report)
    for other in (report, tmp_path / "." / "new.json", link):
        with pytest.raises(UsageError, match=f"^--plot {re.escape(str(other))}: --output names it, too"):
            check_different([("--output", report), ("--plot", other)])
    check_different([("--output", report), ("--plot", None), ("--plot", tmp_path / "plot.png")])
    check_different([("--output", null), ("--plot", null)])


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(ValueError, match="not about files"), writable(tmp_path):
        raise ValueError("not about files")


def test_csv_lines_are_read_back_whatever_they_hold():
    columns = ("source", "label", "error")
    row = {"source": 'a "quoted", name', "error": "two\nlines", "latency_ms": 3}
    text = csv_header(columns) + csv_line(columns, row)
    assert text.startswith("source,label,error\r\n")
    (found,) = csv.DictReader(io.StringIO(text, newline=""))
    assert found == {"source": row["source"], "label": "", "error": row["error"]}


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/St_Johns"])
def test_time_stamps_are_utc_wherever_the_machine_is(zone, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert iso(1_700_000_000.25) == "2023-11-14T22:13:20.250Z"
        assert stamp(1_700_000_000.25) == "20231114-221320"
        assert iso_now().endswith("+00:00")
        assert abs(time.time() - datetime.fromisoformat(iso_now()).timestamp()) < 5
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
