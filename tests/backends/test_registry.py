"""The table of backends: names, aliases, what ``auto`` tries, and what reads the table."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
import tomlkit

from adafocus_edge import doctor
from adafocus_edge.backends import probe
from adafocus_edge.backends.base import CPU_BACKEND
from adafocus_edge.backends.registry import (
    ALIASES,
    AUTO,
    BACKEND_TABLE,
    BACKENDS,
    ON_GPU,
    BackendChoice,
    canonical_backend,
    find_backend,
    load_model,
)
from adafocus_edge.bundle.store import default_bundle, open_bundle
from adafocus_edge.bundle.variants import CALIBRATED, EXACT_INT8, ON_CPU, PURPOSE, REFERENCE, VARIANTS
from adafocus_edge.doctor import OTHERWISE_REPORTED, examine
from adafocus_edge.errors import BackendError, UsageError
from tests.conftest import ROOT


def test_names_and_aliases_lead_to_one_backend_each() -> None:
    assert BACKENDS == ("onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "openvino")
    assert ALIASES == {"cpu": "onnxruntime-cpu", "cuda": "onnxruntime-cuda"}
    assert [canonical_backend(name) for name in (AUTO, "cpu", "cuda", *BACKENDS)] == [
        AUTO, "onnxruntime-cpu", "onnxruntime-cuda", *BACKENDS
    ]  # fmt: skip
    assert get_args(BackendChoice) == (AUTO, *BACKENDS, "cpu", "cuda")
    assert find_backend("cuda").name == "onnxruntime-cuda"
    assert not set(ALIASES) & set(BACKENDS)


@pytest.mark.parametrize("ask", [canonical_backend, find_backend])
def test_an_unknown_backend_is_refused_with_the_known_names(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(UsageError, match=r"unknown backend 'gpu'; known: .*onnxruntime-cpu, onnxruntime-cuda"):
        ask("gpu")


def test_auto_tries_tensorrt_before_onnx_runtime_on_a_gpu() -> None:
    assert ON_GPU == ("tensorrt", "onnxruntime-cuda")
    assert all(find_backend(name).on_gpu for name in ON_GPU)


def test_an_alias_loads_what_it_stands_for() -> None:
    with load_model(open_bundle(default_bundle()), REFERENCE, "cpu") as model:
        assert model.backend == CPU_BACKEND


@pytest.mark.skipif(probe.gpu_obstacle() is None, reason="has an NVIDIA GPU")
def test_a_backend_that_cannot_run_is_refused_by_its_own_name_even_if_asked_for_by_an_alias() -> None:
    with pytest.raises(BackendError, match=r"^onnxruntime-cuda cannot run here: .*use --backend onnxruntime-cpu$"):
        load_model(open_bundle(default_bundle()), REFERENCE, "cuda")


def test_doctor_reports_each_backend_that_has_no_line_of_its_own() -> None:
    parts = [finding.part for finding in examine()]
    own = [backend.name for backend in BACKEND_TABLE if backend.name not in OTHERWISE_REPORTED]
    assert own == ["onnxruntime-cuda", "openvino"]
    assert [part for part in parts if part in own] == own


def test_doctor_looks_for_the_packages_of_every_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: set[str] = set()
    monkeypatch.setattr(doctor, "_installed", lambda names: looked.update(names) or "it")
    examine()
    extras = tomlkit.parse((ROOT / "pyproject.toml").read_text("utf-8")).unwrap()["project"]["optional-dependencies"]
    on_gpus = {"gpu", "tensorrt", "tensorrt-rtx", "openvino"}  # reported by backend
    for extra in extras.keys() - on_gpus - {"dev", "all"}:
        assert {re.split(r"[^\w-]", package)[0] for package in extras[extra]} <= looked, extra


def test_reading_the_table_imports_no_runtime() -> None:
    """The command line reads it for its choices, and must start within 0.3 s."""
    code = "import sys; import adafocus_edge.backends.registry; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "onnxruntime", "tensorrt", "msgspec", "av"} & set(loaded)


def test_two_threads_that_load_cuda_leave_stdout_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime prints what is missing, which is hidden: one that ends first must not restore the other's."""
    from adafocus_edge.backends import onnxruntime

    if not list((Path(onnxruntime.ort.__file__).parent / "capi").glob("libonnxruntime_providers_cuda.so")):
        pytest.skip("this ONNX Runtime has no CUDA provider")
    both, lengths_s = threading.Barrier(2), iter((0.1, 0.3))

    def preload() -> None:
        print("a library is missing")
        length_s = next(lengths_s)  # the first to begin is the first to end
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        time.sleep(length_s)

    monkeypatch.setattr(onnxruntime.ort, "preload_dlls", preload)
    before = sys.stdout
    threads = [threading.Thread(target=onnxruntime.library_obstacle) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert next(lengths_s, None) is None
    assert sys.stdout is before


def test_lists_of_variants_come_from_the_table() -> None:
    assert CALIBRATED == ("int8-cpu", "int8-trt", "fp16")
    assert ON_CPU == ("fp32", "int8-cpu")
    assert {"int8-trt"} == EXACT_INT8
    assert list(PURPOSE) == [variant.name for variant in VARIANTS] == ["fp32", "int8-cpu", "int8-trt", "fp16"]
