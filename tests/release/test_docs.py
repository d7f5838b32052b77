"""The README and the manual: what they name exists, their links lead somewhere, and the site builds strictly."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from adafocus_edge import __version__
from scripts.manual import command_line, http_api, results
from tests.conftest import ROOT, edge
from training.options import TrainOptions

DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md")]
    + [*DOCS.rglob("*.md")]
)
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
SEPARATORS = {"|", "||", "&&", ";", "&"}
OF_OTHER_PROGRAMS = {
    "--serve",  # scripts/docs
    "--nproc-per-node",  # torchrun
    "--data-binary",  # curl
    "--device",  # podman
    "--group-add",
    "--format",
    "--no-healthcheck",
    "--system-site-packages",  # venv
}
PICTURE_KB = 200
README_LINES = 160


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_fences(text: str) -> str:
    return FENCED.sub("", text)


# -- commands ---------------------------------------------------------------------------------------------------------


def words_of(text: str) -> Iterator[list[str]]:
    """Yield the words of each command line in a page's blocks, its shell variables filled in."""
    for language, block in FENCED.findall(text):
        if language not in ("", "shell", "bash"):
            continue
        variables: dict[str, str] = {}
        for raw in block.replace("\\\n", " ").splitlines():
            line = raw
            if "adafocus-edge" not in line and not re.match(r"\w+=|\$\w", line):
                continue
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # not a command: JSON, a table
                continue
            if len(words) == 1 and (found := re.fullmatch(r"(\w+)=(.*)", words[0], re.DOTALL)):
                variables[found[1]] = found[2]
                words = found[2].split()
            yield words


def calls_of(words: list[str]) -> Iterator[list[str]]:
    """Yield the words after each call of the program, up to what the shell ends a command at."""
    for at, word in enumerate(words):
        if Path(word).name == "adafocus-edge":
            rest = words[at + 1 :]
            end = next((number for number, one in enumerate(rest) if one in SEPARATORS), len(rest))
            yield rest[:end]


def commands_of(text: str) -> Iterator[list[str]]:
    for words in words_of(text):
        for call in calls_of(words):
            # Of systemctl, podman and the like, the name may be a unit's, a user's or an image's.
            if call and (call[0] in command_line.commands() or Path(words[0]).name == "adafocus-edge"):
                yield call
    for code in re.findall(r"`adafocus-edge ([^`]+)`", without_fences(text)):
        yield code.split()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_exists_with_its_options(page: Path) -> None:
    verbs = command_line.commands()
    train_options = set(TrainOptions.__dataclass_fields__)
    for call in commands_of(page.read_text("utf-8")):
        if call[0].startswith("-"):
            assert call[0] in command_line.root_options(), call
            continue
        if call[0] == "VERB":
            continue
        assert call[0] in verbs, f"adafocus-edge {' '.join(call)}: no verb {call[0]}"
        known = command_line.options_of(verbs[call[0]])
        for word in call[1:]:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in known, f"adafocus-edge {' '.join(call)}: no option {word}"
            elif call[0] == "train" and "=" in word:
                key = word.partition("=")[0]
                assert key in train_options or key in ("hydra.run.dir", "KEY"), f"train has no option {key}"


def test_the_commands_of_the_readme_are_found() -> None:
    """The test above cannot pass for want of commands."""
    found = [call[0] for call in commands_of((ROOT / "README.md").read_text("utf-8"))]
    assert {"classify", "serve", "doctor", "export", "calibrate", "benchmark"} <= set(found)
    train = list(commands_of((DOCS / "guides" / "train-official.md").read_text("utf-8")))
    assert ["train_stage=3" in call for call in train].count(True) == 2
    assert all("dataset=actnet" in call for call in train if "train_stage=1" in call)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_that_a_page_names_is_one_of_some_verb(page: Path) -> None:
    known = set().union(*map(command_line.options_of, command_line.commands().values())) | command_line.root_options()
    for code in re.findall(r"`([^`\n]+)`", without_fences(page.read_text("utf-8"))):
        if not re.match(
            r"(pip|podman|docker|apt|systemctl|curl|ssh|python|mypy|useradd|systemd|torchrun|srun|ray|install)\b", code
        ):
            assert set(OPTION.findall(code)) <= known | OF_OTHER_PROGRAMS, code


# -- links and figures ------------------------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that a page's headings have, in the site and on GitHub."""
    headings = re.findall(r"^#{1,6} (.+)$", without_fences(page.read_text("utf-8")), re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower())) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(without_fences(page.read_text("utf-8"))):
        target, _, anchor = (link[0] or link[1]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = page if not target else (page.parent / target).resolve()
        assert file.exists(), f"{name_of(page)}: {target}"
        if anchor and file.suffix == ".md" and "<!-- generated: " not in file.read_text("utf-8"):
            included = re.search(r"<!-- include: (\S+) -->", file.read_text("utf-8"))
            assert anchor in anchors_of((file.parent / included[1]) if included else file), f"{target}#{anchor}"


def test_the_readme_is_short_and_its_picture_small() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= README_LINES
    pictures = re.findall(r"!\[[^]]+\]\((\S+)\)", text)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < PICTURE_KB * 1000


def test_the_figures_of_the_readme_are_those_of_the_reports() -> None:
    """Each line of the table stands in a report: its accuracy, GFLOPs, time and ratio."""
    made = [
        [cell.strip().replace("\N{NO-BREAK SPACE}", " ") for cell in line.split("|")]
        for name in ("front-default", "front-official")
        for line in results.front(name).splitlines()
    ]
    lines = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if " ± " in line]
    assert len(lines) == 9
    for line in lines:
        *_, accuracy, gflops, time, ratio, _ = (cell.strip() for cell in line.split("|"))
        assert any({accuracy, gflops, time, ratio} <= set(row) for row in made), line


def test_contributing_names_files_and_names_that_exist() -> None:
    """Of each chapter on where to change something: its files exist, and hold the names that it gives."""
    chapters = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("\n### ")[1:]
    assert len(chapters) == 10
    for chapter in chapters:
        codes = re.findall(r"`([^`\n]+)`", chapter.partition("\n## ")[0])
        files = [ROOT / code for code in codes if re.fullmatch(r"[\w./-]+\.(py|yml|md|toml)", code)]
        assert files, chapter
        for file in files:
            assert file.is_file(), file
        text = "".join(file.read_text("utf-8") for file in files)
        for code in codes:
            name = re.match(r"[A-Za-z_]\w*", code)
            if name and re.search(r"[A-Z_]", name[0]) and "/" not in code and code not in ("NAME", "PATH"):
                assert re.search(rf"\b{name[0]}\b", text), f"{chapter.splitlines()[0]}: {code}"


def test_the_citation_and_the_issue_forms_are_valid() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert str(citation["version"]) == __version__
    assert {"cff-version", "title", "message", "authors"} <= set(citation)
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    for form in (yaml.safe_load(one.read_text("utf-8")) for one in forms if one.stem != "config"):
        assert {"name", "description", "body"} <= set(form)
        assert all(part["type"] in ("markdown", "textarea", "input") for part in form["body"])


# -- the site ---------------------------------------------------------------------------------------------------------


def mkdocs(*arguments: str, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """Run MkDocs with the arguments that ``scripts/docs`` gives it, and these."""
    build = re.search(r"-m mkdocs (build .*?) \"\$@\"", (ROOT / "scripts" / "docs").read_text("utf-8"))
    assert build is not None
    command = [sys.executable, "-m", "mkdocs", *build[1].split(), "--config-file", str(config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manual") / "site"
    done = mkdocs("--site-dir", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


class Words(HTMLParser):
    """The text of a page, and what it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.codes: set[str] = set()
        self.loaded: list[str] = []
        self._code = False
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._code = tag == "code"
        given = dict(attrs)
        if tag in ("script", "img", "link") and (address := given.get("src") or given.get("href")):
            self.loaded.append(address)

    def handle_data(self, data: str) -> None:
        if self._code:
            self.codes.add(data)


def test_the_reference_has_every_option_of_every_verb_and_of_train(site: Path) -> None:
    shown = Words(site / "reference" / "cli.html").codes
    for command in command_line.commands().values():
        assert command_line.options_of(command, hidden=False) - {"--help", "-h"} <= shown
    assert set(TrainOptions.__dataclass_fields__) <= Words(site / "reference" / "train-options.html").codes


def test_nothing_is_left_to_fill_in_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 35
    for page in pages:
        assert not re.search(r"<!-- (generated|include)", page.read_text("utf-8")), page
        for address in Words(page).loaded:
            assert not re.match(r"https?:|//", address), f"{page}: {address}"
            assert (page.parent / address.partition("?")[0]).exists(), f"{page}: {address}"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("[x](#home)", ""),
        ("[x](nowhere.md) [x](#nowhere)", "nowhere.md #nowhere"),
        ("<!-- generated: nothing -->", "nothing"),
        ("<!-- include: nowhere.md -->", "docs/nowhere.md"),
    ],
)
def test_a_broken_page_fails_the_build(tmp_path: Path, broken: str, said: str) -> None:
    """A page without a fault builds with the same configuration."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{broken}\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\nhooks: [{ROOT / 'scripts/manual/hooks.py'}]\n"
                      "theme: {name: mkdocs, palette: null, features: null, font: null}\nextra_css: []\n"
                      "nav: [index.md]\n")  # fmt: skip
    done = mkdocs(config=config)
    assert (done.returncode != 0) == bool(said), done.stderr
    assert all(part in done.stderr for part in said.split())


def test_the_json_page_has_the_fields_of_a_real_result() -> None:
    clip = ROOT / "tests" / "fights" / "fight" / "fi149.mp4"
    result = json.loads(edge("classify", clip, "--json", "--quiet").stdout)
    page = (DOCS / "reference" / "json.md").read_text("utf-8")
    (names,) = re.findall(r"<!-- generated: schemas (Result.*?) -->", page)
    written = http_api.schemas(names)
    assert [name for name in [*result, *result["steps"][0]] if f"`{name}`" not in written] == []


def test_the_picture_is_drawn_from_real_output(tmp_path: Path) -> None:
    picture = tmp_path / "glimpses.png"
    subprocess.run([sys.executable, "-m", "scripts.manual.picture", "-o", picture], check=True, cwd=ROOT)
    assert 10_000 < picture.stat().st_size < PICTURE_KB * 1000
