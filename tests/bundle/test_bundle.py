"""Bundles: whole or not there, and refused by name of what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adafocus_edge.bundle import store as bundle_module
from adafocus_edge.bundle.classes import read_classes
from adafocus_edge.bundle.store import new_bundle, read_bundle
from adafocus_edge.errors import BundleError, UsageError
from adafocus_edge.model.spec import TensorSpec, contract
from tests.conftest import CLIPS, SMALL, edge, official_spec, one_line_error


@pytest.fixture
def bundle(small_bundle, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(small_bundle, tmp_path / "bundle")


def change_manifest(bundle, change):
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_what_was_exported_is_read_back(small_bundle):
    bundle = read_bundle(small_bundle)
    assert bundle.spec == SMALL
    assert bundle.classes == tuple(f"activity {number}" for number in range(7))
    assert bundle.choose_variant() == "fp32"
    assert bundle.graph_path("fp32", "policy").is_file()
    with pytest.raises(UsageError, match="no variant 'int8'; its variants are: fp32"):
        bundle.choose_variant("int8")


@pytest.mark.parametrize(
    "file", ["classes.txt", "fp32/glancer.onnx", "fp32/policy.onnx", "fp32/focuser.onnx", "fp32/step.onnx"]
)
def test_a_changed_byte_is_found(file, bundle):
    path = bundle / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{file}: changed since"):
        read_bundle(bundle)


def test_a_changed_byte_is_told_by_the_command_line(bundle):
    path = bundle / "fp32" / "focuser.onnx"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    for arguments in (("inspect", bundle), ("classify", CLIPS, "--bundle", bundle)):
        one_line_error(edge(*arguments), 1, "focuser.onnx", "changed")


def wrong_shape(manifest):
    manifest["variants"]["fp32"]["policy"]["inputs"][0]["shape"] = ["N", 1280, 9, 9]


DAMAGE = {
    "newer version": (lambda m: m.update(format_version=3), "format version 3, but .* update adafocus-edge"),
    "older version": (lambda m: m.update(format_version=0), "format version 0, but .* export it again"),
    "no version": (lambda m: m.pop("format_version"), "format_version"),
    "no model": (lambda m: m.pop("model"), "model"),
    "wrong type": (
        lambda m: m["model"].update(patch_size="big"),
        r"Expected `int`, got `str` - at `\$.model.patch_size`",
    ),
    "impossible model": (lambda m: m["model"].update(patch_size=500), "patch_size must be 32 to .* not 500"),
    "no graph": (lambda m: m["variants"]["fp32"].pop("focuser"), "has no graph 'focuser'"),
    "unknown graph": (
        lambda m: m["variants"]["fp32"].update(extra=m["variants"]["fp32"]["policy"]),
        "unknown graph 'extra'",
    ),
    "no variant": (lambda m: m.update(variants={}), "no variant"),
    "wrong shape": (wrong_shape, "inputs of fp32/policy do not fit .*9, 9"),
    "other model": (lambda m: m["model"].update(classifier_state=97), "of fp32/classifier do not fit"),
    "outside": (lambda m: m["variants"]["fp32"]["policy"].update(file="../../etc/passwd"), "not a file of variant"),
    "absolute": (lambda m: m["variants"]["fp32"]["policy"].update(file="/etc/passwd"), "not a file of variant"),
    "missing file": (lambda m: m["variants"]["fp32"]["policy"].update(file="fp32/other.onnx"), "other.onnx: missing"),
    "other preprocessing": (lambda m: m["preprocessing"].update(short_side=300), "uses preprocessing that this"),
    "thresholds": (
        lambda m: m.update(thresholds={"fast": [{"order": "clip", "confidence": "logit", "values": [0.5, None]}]}),
        "'fast' do not have one value per frame",
    ),
    "swapped graphs": (
        lambda m: m["variants"]["fp32"].update(policy=m["variants"]["fp32"]["focuser"]),
        "of fp32/policy do not fit",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_manifest_is_refused(kind, bundle):
    change, words = DAMAGE[kind]
    change_manifest(bundle, change)
    with pytest.raises(BundleError, match=words) as told:
        read_bundle(bundle)
    assert str(bundle) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_newer_bundle_is_told_by_the_command_line(bundle):
    change_manifest(bundle, lambda m: m.update(format_version=3))
    one_line_error(edge("inspect", bundle), 1, "version 3", "update adafocus-edge")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_what_is_no_manifest_is_refused(content, bundle):
    (bundle / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json: damaged or not a manifest"):
        read_bundle(bundle)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="no such bundle"):
        read_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match="is not a bundle"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"), [("", "no class names"), ("a\n\nb\n", "line 2 is empty"), (b"\xff\xff", "UTF-8")]
)
def test_class_files(text, words, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BundleError, match=words):
        read_classes(path)
    path.write_bytes("﻿Tai chi\r\nÉquitation\r\n\r\n".encode())
    assert read_classes(path) == ("Tai chi", "Équitation")


def test_a_bundle_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "bundle"
    with pytest.raises(RuntimeError), new_bundle(target) as draft:
        (draft / "bundle.json").write_text("half")
        raise RuntimeError
    assert not target.parent.exists()
    with new_bundle(target) as draft:
        (draft / "bundle.json").write_text("first")
        assert not target.exists()
    assert (target / "bundle.json").read_text() == "first"
    with pytest.raises(UsageError, match="already exists"), new_bundle(target):
        pass
    with pytest.raises(RuntimeError), new_bundle(target, replace=True) as draft:
        raise RuntimeError
    assert (target / "bundle.json").read_text() == "first"
    with new_bundle(target, replace=True) as draft:
        (draft / "bundle.json").write_text("second")
    assert (target / "bundle.json").read_text() == "second"
    assert [path.name for path in target.parent.iterdir()] == ["bundle"]


def test_an_interrupted_replacement_keeps_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "bundle"
    with new_bundle(target) as draft:
        (draft / "bundle.json").write_text("first")
    rename = Path.rename

    def interrupted(path, to):
        if path.suffix == ".part":
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    monkeypatch.setattr(bundle_module, "_swapped", lambda *_: False)  # as where folders cannot be exchanged in one step
    with pytest.raises(KeyboardInterrupt), new_bundle(target, replace=True) as draft:
        (draft / "bundle.json").write_text("second")
    assert (target / "bundle.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_bundle_leaves_no_folders(tmp_path):
    with pytest.raises(RuntimeError), new_bundle(tmp_path / "a" / "b" / "bundle"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_two_writers_do_not_mix(tmp_path):
    target = tmp_path / "bundle"
    with pytest.raises(BundleError, match="cannot be written"), new_bundle(target) as mine:
        (mine / "bundle.json").write_text("mine")
        with new_bundle(target) as theirs:
            (theirs / "bundle.json").write_text("theirs")
    assert (target / "bundle.json").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_leaves_nothing(number, status, small_checkpoint, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "adafocus_edge", "export", str(small_checkpoint), "-o", str(tmp_path / "bundle"),
         "--patch-size", "160"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".bundle.*/fp32")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    # A shell sees 130 either way: CPython dies of the signal if it came while code made from a string ran (torch.fx's).
    assert process.returncode in (status, -number if number == signal.SIGINT else status)
    assert told.strip() == ("interrupted" if number == signal.SIGINT else "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(BundleError, match="cannot be written"), new_bundle(tmp_path / "closed" / "bundle"):
        pass


def test_the_contract_names_every_tensor():
    spec = official_spec(patch_size=96)
    assert contract(spec, "policy") == (
        (TensorSpec("feature_map", "float32", ("N", 1280, 7, 7)), TensorSpec("policy_state", "float32", ("N", 1024))),
        (
            TensorSpec("origin", "float32", ("N", 2)),
            TensorSpec("action", "int64", ("N",)),
            TensorSpec("policy_state_out", "float32", ("N", 1024)),
        ),
    )


def test_inspect_shows_what_is_in_it(small_bundle):
    done = edge("inspect", small_bundle)
    assert done.returncode == 0, done.stderr
    for text in ("resnet18", "5 x 5 = 25 patches", "feature_map float32 [N, 1280, 3, 3]", "joined step", "GFLOPs/clip"):
        assert text in done.stdout
    found = json.loads(edge("inspect", small_bundle, "--json").stdout)
    assert found["model"]["grid"] == 5
    assert found["classes"][2] == "activity 2"
    graphs = found["variants"]["fp32"]
    total = sum(graphs[name]["gflops"] for name in ("glancer", "policy", "focuser", "classifier"))
    assert found["totals"]["fp32"]["gflops_per_clip"] == pytest.approx(total * 8, abs=1e-4)
    assert found["reports"]["parity"]["rows"]
