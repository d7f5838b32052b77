"""The unit, the configuration and the container files in deploy/ fit systemd, the command line and the package."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from email.message import Message
from types import ModuleType

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from adafocus_edge.cli.app import app
from adafocus_edge.errors import UsageError
from tests.conftest import ROOT
from tests.support.streams import need

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEPLOY = ROOT / "deploy"
PIN = ROOT / "scripts" / "pin"
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
    config.write_text(re.sub(r"^# --- page.*?(?=^# ---)", "", text, flags=re.MULTILINE | re.DOTALL))
    assert len(parse("classify", "--config", str(config))["source"]) == 2


@pytest.mark.parametrize("file", ["Containerfile", "Containerfile.jetson"])
def test_the_container_files_name_what_there_is(file):
    text = (DEPLOY / file).read_text()
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for name in line.split()]
    assert {"pyproject.toml", "adafocus_edge", "training", "export", "calibration"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    installs = re.findall(r"pip (?:install|wheel) (.*)", text.replace("\\\n", " "))
    assert installs
    for arguments in (part.partition("&&")[0] for part in installs):
        pinned = "--require-hashes" in arguments and "--only-binary :all:" in arguments
        assert pinned or "--no-index" in arguments, f"takes what nobody pinned: {arguments}"
    assert set(re.findall(r"-r (deploy/\S+)", text)) <= set(copied)
    (start,) = re.findall(r"^CMD \[(.+)\]$", text, re.MULTILINE)
    verb, *arguments = [word.strip('"') for word in start.split(", ")]
    assert arguments[:2] == ["--config", CONFIG]
    given = parse(verb, *arguments[2:])
    assert f"http://127.0.0.1:{given['port']}/healthz" in text


def pins_of(file: str) -> list[tuple[Requirement, list[str]]]:
    """The lines of a file of pins, each with its hashes. Fails for what is neither a pin nor a comment."""
    lines = [line.strip() for line in (DEPLOY / file).read_text().replace("\\\n", " ").splitlines()]
    pins = []
    for line in (line for line in lines if line and not line.startswith("#")):
        pin, *hashes = re.split(r"\s+--hash=", line)
        pins.append((Requirement(pin), hashes))
    return pins


@pytest.mark.parametrize("file", ["requirements-cpu.txt", "requirements-jetson.txt", "requirements-build.txt"])
def test_every_pin_is_one_version_with_hashes(file):
    pins = pins_of(file)
    assert len(pins) >= 7
    for pin, hashes in pins:
        (version,) = pin.specifier
        assert version.operator == "==", pin
        assert "*" not in version.version, pin
        assert hashes, f"{pin} has no hash"
        assert [one for one in hashes if not re.fullmatch(r"sha256:[0-9a-f]{64}", one)] == [], pin


@pytest.mark.parametrize(
    ("file", "machine", "python"),
    [
        ("requirements-cpu.txt", "x86_64", "3.12"),
        ("requirements-cpu.txt", "aarch64", "3.12"),
        ("requirements-jetson.txt", "aarch64", "3.10"),
        ("requirements-build.txt", "x86_64", "3.12"),
        ("requirements-build.txt", "aarch64", "3.10"),
    ],
)
def test_the_pins_are_what_the_package_asks_for(file, machine, python):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if file == "requirements-build.txt":
        wanted = project["build-system"]["requires"]
    else:
        extras = re.findall(r"--extra (\S+)", re.search(r"^serving=\((.+)\)$", PIN.read_text(), re.MULTILINE)[1])
        assert extras == ["serve", "mqtt"]
        optional = project["project"]["optional-dependencies"]
        wanted = [*project["project"]["dependencies"], *(name for extra in extras for name in optional[extra])]
    if file == "requirements-jetson.txt":
        wanted += ["onnx", "cuda-bindings>=12.6,<13"]
    there = {
        "platform_machine": machine, "platform_system": "Linux", "sys_platform": "linux", "os_name": "posix",
        "python_version": python, "python_full_version": f"{python}.12", "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }  # fmt: skip
    pinned = [pin for pin, _ in pins_of(file) if pin.marker is None or pin.marker.evaluate(there)]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pinned}
    assert len(versions) == len(pinned), "a package has two versions"
    for one in map(Requirement, wanted):
        if one.marker is None or one.marker.evaluate(there):
            version = versions.get(canonicalize_name(one.name))
            assert version is not None, f"{one.name} is not pinned: run scripts/pin"
            assert one.specifier.contains(version), f"{one} does not allow the pin {version}: run scripts/pin"


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program behind scripts/audit."""
    spec = importlib.util.spec_from_file_location("audit_pins", ROOT / "scripts" / "audit_pins.py")
    program = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "audit_pins", program)  # its dataclasses look there
    spec.loader.exec_module(program)
    return program


@pytest.fixture
def lone_index(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that knows the newest releases of two packages; pip-audit answers for nothing."""
    flaw = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fixed_in": [], "withdrawn": None}
    pages = {
        "sound": {"info": {"version": "2.0"}, "vulnerabilities": []},
        "leaky": {"info": {"version": "1.0"}, "vulnerabilities": [flaw, {**flaw, "id": "CVE-1", "aliases": []}]},
    }

    def opened(address: str, timeout: float) -> io.StringIO:
        name = address.split("/")[-2]
        if name not in pages:
            raise urllib.error.HTTPError(address, 404, "no such page", Message(), None)
        return io.StringIO(json.dumps(pages[name]))

    monkeypatch.setattr(urllib.request, "urlopen", opened)
    monkeypatch.setattr(audit, "ask_pip_audit", lambda pins: {})


def test_the_audit_fails_for_what_is_known_and_names_what_is_not(audit, lone_index, tmp_path, capsys):
    pins = tmp_path / "requirements.txt"
    pins.write_text("sound==2.0 \\\n    --hash=sha256:00\nleaky==1.0\nleaky==0.9 ; python_version < '3.11'\n")
    assert audit.main([str(pins)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"{pins}: 3 packages; audited: 2 by the index",
        "  VULNERABLE: leaky 1.0: PYSEC-1 (CVE-1), not mended yet",
        "  NOT AUDITED, no answer from the database (1): leaky 0.9",
        "known vulnerabilities: 1",
    ]
    pins.write_text("sound==1.9\nunknown==1.0\n")  # an older release, and one that the index does not know
    assert audit.main([str(pins)]) == 0
    assert "NOT AUDITED, no answer from the database (2): sound 1.9, unknown 1.0" in capsys.readouterr().out


def test_what_pip_audit_skips_is_not_audited(audit, monkeypatch):
    said = {
        "dependencies": [
            {"name": "sound", "version": "2.0", "vulns": []},
            {"name": "leaky", "version": "1.0", "vulns": [{"id": "PYSEC-1", "aliases": [], "fix_versions": ["1.1"]}]},
            {"name": "odd", "skip_reason": "Dependency not found and could not be audited"},
        ]
    }
    done = subprocess.CompletedProcess([], 1, json.dumps(said), "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    found = audit.ask_pip_audit({"sound": "2.0", "leaky": "1.0", "odd": "3"})
    assert found.keys() == {"sound", "leaky"}
    assert found["leaky"].found == ("PYSEC-1, mended in 1.1",)
    done.stdout = ""
    assert audit.ask_pip_audit({"sound": "2.0"}) == {}


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
