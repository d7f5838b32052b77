"""Look up pinned packages among the known vulnerabilities: ``audit_pins.py FILE...``, by pip-audit.

pip-audit asks for each release of a package by itself, and takes one that is not answered for as audited. Some mirrors
of the index answer for packages only, with the vulnerabilities of the newest release: that is asked next, and counts
where the pin is that release. What is left is said to be not audited.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from pip._internal.models.index import PyPI

PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)
TIMEOUT_S = 30


@dataclass(frozen=True)
class Looked:
    """What is known of one release.

    Attributes:
        by: who answered, empty where nobody did.
        found: a sentence for each vulnerability.
    """

    by: str
    found: tuple[str, ...] = ()


def pins_of(text: str) -> list[dict[str, str]]:
    """Return the version of each package in a file of pins, on any platform; a second version in a second part."""
    parts: list[dict[str, str]] = [{}]
    for name, version in PIN.findall(text):
        part = next((part for part in parts if name not in part), None)
        if part is None:
            parts.append(part := {})
        part[name] = version
    return parts


def ask_pip_audit(pins: dict[str, str]) -> dict[str, Looked]:
    """Return what pip-audit says of pins. Nothing at all where it cannot run or reach its database."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{name}=={version}\n" for name, version in pins.items()))
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "-r", file.name, "--no-deps", "--disable-pip", "-f", "json"]
        done = subprocess.run(
            [*command, "--progress-spinner", "off"], check=False, capture_output=True, text=True, timeout=600
        )
    try:
        answers = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print(f"pip-audit: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}", file=sys.stderr)
        return {}
    looked = {}
    for answer in answers:
        if "skip_reason" not in answer:
            found = (_sentence(one["id"], one.get("aliases"), one.get("fix_versions")) for one in answer["vulns"])
            looked[answer["name"]] = Looked("pip-audit", tuple(found))
    return looked


def ask_for_the_newest(name: str, version: str) -> Looked:
    """Return what the index says of a package's newest release, if the pin is that."""
    try:
        with urllib.request.urlopen(f"{PyPI.pypi_url}/{name}/json", timeout=TIMEOUT_S) as answer:
            page = json.load(answer)
    except (OSError, ValueError):
        return Looked("")
    if page["info"]["version"] != version or page.get("vulnerabilities") is None:
        return Looked("")
    known: dict[str, str] = {}
    named: set[str] = set()
    for one in page["vulnerabilities"]:
        if not one.get("withdrawn") and one["id"] not in named:  # several databases know the same one
            known[one["id"]] = _sentence(one["id"], one.get("aliases"), one.get("fixed_in"))
            named.update(one.get("aliases") or ())
    return Looked("the index", tuple(known.values()))


def _sentence(name: str, aliases: list[str] | None, fixed: list[str] | None) -> str:
    others = f" ({', '.join(aliases)})" if aliases else ""
    return f"{name}{others}, " + (f"mended in {', '.join(fixed)}" if fixed else "not mended yet")


def main(paths: list[str]) -> int:
    """Audit the files and print what was found. Returns the exit code: 1 where a vulnerability is known."""
    vulnerable = 0
    for path in map(Path, paths):
        looked: dict[tuple[str, str], Looked] = {}
        for pins in pins_of(path.read_text()):
            known = ask_pip_audit(pins)
            for name, version in pins.items():
                looked[name, version] = known.get(name) or ask_for_the_newest(name, version)
        by = [one.by for one in looked.values()]
        counts = ", ".join(f"{by.count(who)} by {who}" for who in ("pip-audit", "the index") if who in by)
        print(f"{path}: {len(looked)} packages; audited: {counts or 'none'}")
        for (name, version), one in looked.items():
            for sentence in one.found:
                vulnerable += 1
                print(f"  VULNERABLE: {name} {version}: {sentence}")
        left = [f"{name} {version}" for (name, version), one in looked.items() if not one.by]
        if left:
            print(f"  NOT AUDITED, no answer from the database ({len(left)}): {', '.join(left)}")
    print(f"known vulnerabilities: {vulnerable}")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
