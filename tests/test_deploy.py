"""The unit, the configuration and the container files in deploy/ fit systemd, the command line and the package."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
import typer

from adafocus_edge.cli import app
from adafocus_edge.errors import UsageError
from tests.conftest import ROOT
from tests.streams import need

DEPLOY = ROOT / "deploy"
PROGRAM = "/opt/adafocus-edge/bin/adafocus-edge"
CONFIG = "/etc/adafocus-edge/stream.toml"
NEWER_KEYS = re.compile(r".*Unknown key(?: name)? '(RestartSteps|RestartMaxDelaySec)' in section .*ignoring\.")
"""Which systemd before 254 does not know, and says so."""


def parse(verb: str, *arguments: str) -> dict[str, object]:
    """What a verb would be called with."""
    command = typer.main.get_command(app).commands[verb]
    with command.make_context(verb, list(arguments)) as context:
        return context.params


def uncommented(text: str) -> str:
    """A configuration with every example in its comments switched on."""
    return re.sub(r"^# ((?:[a-z-]+ = |\[\[).*)", r"\1", text, flags=re.MULTILINE)


@pytest.mark.parametrize("variant", ["serve", "classify"])
def test_systemd_takes_the_unit(variant, tmp_path):
    need("systemd-analyze")
    unit = tmp_path / "adafocus-edge.service"
    unit.write_text((DEPLOY / unit.name).read_text().replace(PROGRAM, sys.executable))
    if variant == "classify":
        (tmp_path / "adafocus-edge.service.d").mkdir()
        drop_in = tmp_path / "adafocus-edge.service.d" / "classify.conf"
        drop_in.write_text((DEPLOY / "classify.conf").read_text().replace(PROGRAM, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", unit.name],
        check=False, capture_output=True, text=True, timeout=60, env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "adafocus" in line or "classify.conf" in line]
    assert [line for line in said if not NEWER_KEYS.fullmatch(line)] == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("file", "verb"), [("adafocus-edge.service", "serve"), ("classify.conf", "classify")])
def test_the_unit_runs_what_the_command_line_takes(file, verb, monkeypatch):
    lines = re.findall(r"^ExecStart=(.+)$", (DEPLOY / file).read_text(), re.MULTILINE)
    assert [shlex.split(line) for line in lines] == [[PROGRAM, verb, "--config", CONFIG]]


@pytest.mark.parametrize("everything", [False, True])
def test_serve_takes_the_configuration(everything, tmp_path):
    text = (DEPLOY / "stream.toml").read_text()
    config = tmp_path / "stream.toml"
    config.write_text(uncommented(text) if everything else text)
    given = parse("serve", "--config", str(config))
    names = ["door", "bench"] if everything else ["door"]
    assert [source.split("=")[0] for source in given["source"]] == names
    assert given["event"] == ["fight=0.8,for=2.0,cooldown=30.0"]
    assert given["overlap"] == 2
    assert given["port"] == 8765
    assert given["host"] == ("0.0.0.0" if everything else "127.0.0.1")


def test_classify_takes_it_but_for_what_is_of_the_page(tmp_path):
    text = uncommented((DEPLOY / "stream.toml").read_text())
    config = tmp_path / "stream.toml"
    config.write_text(text)
    with pytest.raises(UsageError, match="no option 'host'"):
        parse("classify", "--config", str(config))
    config.write_text(re.sub(r"^# --- the page.*?(?=^# ---)", "", text, flags=re.MULTILINE | re.DOTALL))
    assert len(parse("classify", "--config", str(config))["source"]) == 2


@pytest.mark.parametrize("file", ["Containerfile", "Containerfile.jetson"])
def test_the_container_files_name_what_there_is(file):
    text = (DEPLOY / file).read_text()
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for name in line.split()]
    assert {"pyproject.toml", "adafocus_edge", "training", "export", "calibration"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.search(r'"\$wheel\[(.+?)\]"', text)[1].split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"no extra {extra}"
    (start,) = re.findall(r"^CMD \[(.+)\]$", text, re.MULTILINE)
    verb, *arguments = [word.strip('"') for word in start.split(", ")]
    assert arguments[:2] == ["--config", CONFIG]
    given = parse(verb, *arguments[2:])
    assert f"http://127.0.0.1:{given['port']}/healthz" in text


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_what_cannot_be_installed_is_told(ci, code, tmp_path):
    for tool in ("bash", "id", "tail"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    done = subprocess.run(
        ["/bin/bash", ROOT / "scripts" / "system-packages"],
        check=False, capture_output=True, text=True, timeout=60, env={"PATH": str(tmp_path), "CI": ci},
    )  # fmt: skip
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert "run: sudo apt-get install --no-install-recommends ffmpeg" in line
