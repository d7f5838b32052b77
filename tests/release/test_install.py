"""What is built, and what it is once installed: bare, in every Python at hand; and as a container has it.

A Python that is not there, or an index that does not answer, is told by a skipped test; with CI=true the index must
answer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from adafocus_edge import __version__
from adafocus_edge.cli.app import app
from tests.conftest import ROOT, one_line_error

FILES = ROOT / "tests" / "release" / "wheel_files.txt"
RENEW = "ADAFOCUS_EDGE_RENEW_WHEEL_FILES"
CLIP = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
VERBS = tuple(typer.main.get_command(app).commands)
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
AT_ONCE = 2
"""Environments made, and commands run, at the same time."""
SLOW = {
    "numpy", "onnxruntime", "av", "cv2", "PIL", "rich", "msgspec", "torch", "torchvision", "onnx", "matplotlib",
    "starlette", "uvicorn", "asyncio", "training", "export", "calibration",
}  # fmt: skip
"""What no help may wait for."""
SLOW_IN_TYPER = "pydantic"
"""What Typer imports for the options of a verb, but not for the list of verbs."""
EXTRAS = {
    "torch", "torchvision", "hydra", "tensorboard", "matplotlib", "onnx", "onnxscript", "ml_dtypes", "cuda",
    "tensorrt", "tensorrt_rtx", "PyNvVideoCodec", "starlette", "uvicorn", "multipart", "prometheus_client", "paho",
    "pygame", "pyarrow", "openvino", "pytest",
}  # fmt: skip
"""What an environment without extras has not."""
NEEDING_MORE = {
    "export CHECKPOINT -o bundle": "export",
    "train dataset=custom data_dir=. train_stage=1": "train",
    "evaluate CHECKPOINT --data FIGHTS": "train",
    "evaluate --data FIGHTS --plot curve.png": "plot",
    "calibrate --data FIGHTS -o calibrated": "calibrate",
    "calibrate --data FIGHTS -o calibrated --plot costs.png": "plot",
    "build -o built": "tensorrt",
    "build -o built --library tensorrt-rtx": "tensorrt-rtx",
    "benchmark --data FIGHTS --quick --plot front.png": "plot",
    "benchmark --data FIGHTS --quick -o page.html": "plot",
    "serve": "serve",
    "classify CLIP --mqtt mqtt://127.0.0.1/site": "mqtt",
    "classify CLIP --show": "show",
    "classify CLIP -o results.parquet": "parquet",
}
"""What is asked for, and the extra that it needs."""


def bare_environment() -> dict[str, str]:
    """The environment variables, without what would lead a Python out of its environment. Nothing is compiled ahead."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ADAFOCUS", "VIRTUAL"))}
    return {**kept, "COLUMNS": "200", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_COMPILE": "0"}


def called(*command: object, cwd: Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, cwd=cwd, env=bare_environment(),
        timeout=timeout_s,
    )  # fmt: skip


# --- what is built ----------------------------------------------------------------------------------------------------


def build(what: str, source: Path, target: Path) -> Path:
    """Build a wheel or an sdist without the index, and return its path."""
    command = [sys.executable, "-m", "build", f"--{what}", "--no-isolation", "--outdir", target, source]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = target.iterdir()
    return made


def file_list(wheel: Path) -> list[str]:
    """What lies in a wheel, whatever its version."""
    with zipfile.ZipFile(wheel) as files:
        return sorted(name.replace(f"-{__version__}.", "-VERSION.") for name in files.namelist())


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def test_the_wheel_has_the_files_that_it_must_have(wheel):
    found = set(file_list(wheel))
    if os.environ.get(RENEW) == "1":
        FILES.write_text("".join(f"{name}\n" for name in sorted(found)))
    wanted = set(FILES.read_text().splitlines())
    assert (sorted(found - wanted), sorted(wanted - found)) == ([], []), (
        f"files that are new in the wheel, and files that are gone; if both are meant, {RENEW}=1 renews the list: "
        f"{RENEW}=1 scripts/test tests/release/test_install.py -k must_have"
    )


def test_the_wheel_is_whole_and_has_nothing_of_ours_alone(wheel):
    names = set(file_list(wheel))
    assert {name.partition("/")[0] for name in names} == {
        "adafocus_edge", "training", "export", "calibration", "adafocus_edge-VERSION.dist-info",
    }  # fmt: skip
    assert not [name for name in names if re.search(r"test|bench(?!mark/|mark\.py)|conftest|\.pyc$|/\.", name)]
    model = ROOT / "adafocus_edge" / "default_model"
    for folder in (model, ROOT / "adafocus_edge" / "serve" / "page", ROOT / "training" / "conf"):
        assert {str(path.relative_to(ROOT)) for path in folder.rglob("*") if path.is_file()} <= names
    for name in ("LICENSE", "NOTICE"):
        assert f"adafocus_edge-VERSION.dist-info/licenses/{name}" in names
    with zipfile.ZipFile(wheel) as files:
        about = files.read(f"adafocus_edge-{__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in about
    assert f"adafocus_edge-{__version__}-py3-none-any.whl" == wheel.name
    assert re.findall(r"^Classifier: .* :: (3\.\d+)$", about, re.MULTILINE) == list(PYTHONS)
    named = set(NEEDING_MORE.values())
    for path in (ROOT / "adafocus_edge").rglob("*.py"):
        named |= set(re.findall(r"adafocus-edge\[([a-z-]+)\]", path.read_text()))
    assert named <= set(re.findall(r"^Provides-Extra: (\S+)$", about, re.MULTILINE)), "a message names no extra of ours"


def test_the_sdist_builds_the_same_wheel(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path / "source")
    (tree,) = (tmp_path / "source").iterdir()
    for name in (
        "README.md",
        "mkdocs.yml",
        "docs/index.md",
        "SECURITY.md",
        "LICENSE",
        "scripts/test",
        "deploy/Containerfile",
        "tests/conftest.py",
    ):
        assert (tree / name).is_file(), f"the sdist lacks {name}"
    again = build("wheel", tree, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert one.namelist() == other.namelist()
        assert [name for name in one.namelist() if one.read(name) != other.read(name)] == []


# --- installed without extras -----------------------------------------------------------------------------------------


def interpreter(version: str) -> Path | None:
    """A Python of this version that can make environments: the running one, on the path, or one of pyenv's."""
    here = "{}.{}".format(*sys.version_info)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [Path(sys.executable)] if version == here else []
    found += [Path(path) for path in (shutil.which(f"python{version}"),) if path]
    found += sorted(pyenv.glob(f"{version}.*/bin/python"))
    code = f"import sys, venv, ensurepip; raise SystemExit('{{}}.{{}}'.format(*sys.version_info) != {version!r})"
    return next((path for path in found if called(path, "-c", code, cwd=ROOT).returncode == 0), None)


def need_python(version: str) -> Path:
    """Return a Python of this version, or skip the test."""
    return interpreter(version) or pytest.skip(f"no Python {version} that can make environments is on this machine")


def no_index(pip: Path, folder: Path) -> bool:
    """Whether the index does not answer for a package that it must have."""
    return (
        called(pip, "-m", "pip", "download", "--no-deps", "-d", folder / "asked", "mdurl", cwd=folder).returncode != 0
    )


def check_installed(done: subprocess.CompletedProcess[str], python: Path, folder: Path) -> None:
    """Fail the test if pip failed; skip it where that is for want of an index, and this is not CI."""
    if done.returncode != 0 and os.environ.get("CI") != "true" and no_index(python, folder):
        pytest.skip("the package index does not answer")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@dataclass(frozen=True)
class Bare:
    """An environment that the wheel was installed into.

    Attributes:
        folder: of the environment.
        cwd: an empty folder, to stand in.
        installed: what pip said.
    """

    folder: Path
    cwd: Path
    installed: subprocess.CompletedProcess[str]

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def edge(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the command as a user does."""
        return called(self.folder / "bin" / "adafocus-edge", *arguments, cwd=self.cwd)


def install(wheel: Path, python: Path, folder: Path) -> Bare:
    """Make an environment and install the wheel without extras."""
    (folder / "cwd").mkdir(parents=True)
    done = called(python, "-m", "venv", folder / "env", cwd=folder)
    made = Bare(folder / "env", folder / "cwd", done)
    if done.returncode == 0:
        command = (made.python, "-m", "pip", "install", "--quiet", wheel)
        made = Bare(made.folder, made.cwd, called(*command, cwd=folder, timeout_s=600))
    return made


@pytest.fixture(scope="session")
def installing(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Bare]]]:
    """The wheel on its way into every environment that the chosen tests want."""
    wanted = dict.fromkeys(
        item.callspec.params["bare"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "bare" in item.fixturenames and hasattr(item, "callspec")
    )
    folder = tmp_path_factory.mktemp("bare")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            version: pool.submit(install, wheel, python, folder / version)
            for version in wanted
            if (python := interpreter(version))
        }
    shutil.rmtree(folder)


@pytest.fixture(scope="session", params=PYTHONS)
def bare(request: pytest.FixtureRequest, installing: dict[str, Future[Bare]]) -> Iterator[Bare]:
    """A bare environment of each Python, gone once its tests are through."""
    need_python(request.param)
    made = installing[request.param].result()
    check_installed(made.installed, made.python, made.cwd)
    yield made
    shutil.rmtree(made.folder)


def imported(stderr: str) -> tuple[set[str], list[str]]:
    """Split what ``-X importtime`` adds to stderr: the packages imported, and the other lines."""
    lines = stderr.splitlines()
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    return names, [line for line in lines if not line.startswith("import time:")]


def test_every_help_is_there_and_waits_for_nothing(bare):
    program = bare.folder / "bin" / "adafocus-edge"

    def help_of(*verb: str) -> subprocess.CompletedProcess[str]:
        return called(bare.python, "-X", "importtime", program, *verb, "--help", cwd=bare.cwd)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        helps = list(pool.map(lambda verb: help_of(*verb), [(), *((verb,) for verb in VERBS)]))
    for verb, done in zip(("", *VERBS), helps, strict=True):
        names, others = imported(done.stderr)
        assert (done.returncode, others) == (0, []), verb
        assert f"Usage: adafocus-edge {verb}".rstrip() in done.stdout
        assert "adafocus_edge" in names
        # The help of train lists its options, whose dataclass needs nothing slow.
        allowed = {"training"} if verb == "train" else set()
        assert (names & (SLOW if verb else {*SLOW, SLOW_IN_TYPER})) - allowed == set(), verb
    assert set(re.findall(r"^  ([a-z-]+) ", helps[0].stdout, re.MULTILINE)) >= set(VERBS)
    for started in ((program,), (bare.python, "-m", "adafocus_edge")):
        assert called(*started, "--version", cwd=bare.cwd).stdout == f"adafocus-edge {__version__}\n"


def test_nothing_of_an_extra_is_there(bare):
    code = f"""
import importlib.metadata, importlib.util, json
import adafocus_edge, training, export, calibration
found = [name for name in {sorted(EXTRAS)} if importlib.util.find_spec(name)]
files = [package.__file__ for package in (adafocus_edge, training, export, calibration)]
print(json.dumps([found, files, importlib.metadata.version("adafocus-edge")]))
"""
    done = called(bare.python, "-c", code, cwd=bare.cwd)
    assert done.returncode == 0, done.stderr
    found, files, version = json.loads(done.stdout)
    assert found == []
    assert all(Path(file).is_relative_to(bare.folder) for file in files), files
    assert version == __version__
    checked = called(bare.python, "-m", "pip", "check", cwd=bare.cwd)
    assert checked.returncode == 0, checked.stdout


def test_the_default_model_runs(bare):
    done = bare.edge("classify", CLIP, "--json", "--quiet", "--save-video", "seen.mp4")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["label"] == "fight"
    assert result["confidence"] == pytest.approx(0.945, abs=0.02)
    assert result["steps_used"] == 8
    assert (bare.cwd / "seen.mp4").stat().st_size > 10_000
    done = bare.edge("inspect", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["classes"] == ["fight", "no_fight"]
    done = bare.edge("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    findings = {finding["part"]: finding for finding in json.loads(done.stdout)}
    assert {findings[part]["status"] for part in ("onnxruntime-cpu", "video decoding (PyAV)", "cameras (OpenCV)")} == {
        "ok"
    }
    missing = findings["train, export: PyTorch"]
    assert (missing["status"], missing["fix"]) == ("missing", "pip install 'adafocus-edge[export]'")


def test_what_needs_an_extra_names_it(bare):
    (bare.cwd / "last.pth.tar").write_bytes(b"none")
    stands_for = {"CHECKPOINT": "last.pth.tar", "FIGHTS": ROOT / "tests" / "fights", "CLIP": CLIP}

    def asked(command: str) -> subprocess.CompletedProcess[str]:
        return bare.edge(*(stands_for.get(word, word) for word in command.split()))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = dict(zip(NEEDING_MORE, pool.map(asked, NEEDING_MORE), strict=True))
    for command, done in answers.items():
        done.stderr = re.sub(r"^the default model: .*\n", "", done.stderr)
        one_line_error(done, 1, f"pip install 'adafocus-edge[{NEEDING_MORE[command]}]'")
        assert done.stdout == "", command
    assert sorted(path.name for path in bare.cwd.iterdir() if path.name not in ("asked", "seen.mp4")) == [
        "last.pth.tar"
    ]


# --- installed as a container has it ----------------------------------------------------------------------------------


def build_stage(file: str, root: Path, python: Path) -> tuple[list[str], str]:
    """What a container file copies and runs to build, with every absolute path moved below a folder."""
    stage = (ROOT / "deploy" / file).read_text().partition("\nRUN useradd")[0].rpartition("\nFROM docker.io")
    text = re.sub(r"^#.*\n", "", "".join(stage) if file.endswith("jetson") else stage[0], flags=re.MULTILINE)
    text = text.replace("\\\n", " ")
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()]
    runs = [run for run in re.findall(r"^RUN (.+)$", text, re.MULTILINE) if "apt-get" not in run]
    script = re.sub(r"(?<=\s)/(?=(?:opt|wheels|src)\b)|^/(?=opt\b)", f"{root}/", "\n".join(runs), flags=re.MULTILINE)
    script = re.sub(r"\bpython3? -m venv", f"{python} -m venv", script)
    outside = [word for word in re.findall(r"(?<!\S)/\S*", script) if not word.startswith((f"{root}/", str(python)))]
    assert outside == [], "would touch the machine itself"
    return copied, script


def answers(port: int) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=4).status == 200)
    except OSError:
        return False


@pytest.mark.parametrize(("file", "version"), [("Containerfile", "3.12"), ("Containerfile.jetson", "3.10")])
def test_a_container_is_built_from_pins_and_serves(file, version, tmp_path):
    python = need_python(version)
    copied, script = build_stage(file, tmp_path, python)
    source = tmp_path / "src"
    for name in copied:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    done = called("bash", "-ec", script, cwd=source, timeout_s=600)
    check_installed(done, python, tmp_path)
    program = tmp_path / "opt" / "adafocus-edge" / "bin" / "adafocus-edge"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "serve", "--port", str(port), "--quiet"]
    with subprocess.Popen(command, cwd=tmp_path, env=bare_environment(), stderr=subprocess.PIPE, text=True) as serving:
        try:
            deadline = time.monotonic() + 60
            while not answers(port):
                assert serving.poll() is None, serving.communicate()[1]
                assert time.monotonic() < deadline, "no answer"
                time.sleep(0.2)
        finally:
            serving.terminate()
            _, said = serving.communicate(timeout=30)
    assert "Traceback" not in said
    shutil.rmtree(tmp_path / "opt")
