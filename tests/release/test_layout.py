"""Where names can be imported from: the public face, and old paths that documents named."""

import subprocess
import sys
from importlib import import_module

import pytest

import adafocus_edge

OLD = {
    "adafocus_edge.backends.load.load_model": "adafocus_edge.backends.registry",
    "adafocus_edge.bundle.Bundle": "adafocus_edge.bundle.manifest",
    "adafocus_edge.bundle.default_bundle": "adafocus_edge.bundle.store",
    "adafocus_edge.bundle.read_bundle": "adafocus_edge.bundle.store",
    "adafocus_edge.frames.ModelFrame": "adafocus_edge.media.frames",
    "adafocus_edge.glimpse.GlimpseStream": "adafocus_edge.runtime.glimpse",
    "adafocus_edge.glimpse.see_clip": "adafocus_edge.runtime.glimpse",
    "adafocus_edge.glimpse.softmax": "adafocus_edge.model.logits",
    "adafocus_edge.lanes.Lanes": "adafocus_edge.runtime.lanes",
    "adafocus_edge.preprocess.FrameMaker": "adafocus_edge.media.preprocess",
    "adafocus_edge.preprocess.model_frame": "adafocus_edge.media.preprocess",
    "adafocus_edge.preprocess.model_frames": "adafocus_edge.media.preprocess",
    "adafocus_edge.preprocess.motion_frame": "adafocus_edge.media.preprocess",
    "adafocus_edge.preprocess.motion_frame_indices": "adafocus_edge.media.preprocess",
    "adafocus_edge.preprocess.preprocess": "adafocus_edge.media.preprocess",
    "adafocus_edge.preprocess.sample_indices": "adafocus_edge.media.preprocess",
    "adafocus_edge.preprocess.sampled_frames": "adafocus_edge.media.preprocess",
    "adafocus_edge.sources.Source": "adafocus_edge.media.sources",
}


@pytest.mark.parametrize("path", OLD)
def test_an_old_path_gives_the_same_object_as_its_new_home(path):
    module, _, name = path.rpartition(".")
    assert getattr(import_module(module), name) is getattr(import_module(OLD[path]), name)


@pytest.mark.parametrize("name", [name for name in adafocus_edge.__all__ if name != "__version__"])
def test_a_public_name_is_what_its_home_defines(name):
    found = getattr(adafocus_edge, name)
    assert found is getattr(import_module(found.__module__), name)
    assert name in dir(adafocus_edge)


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = adafocus_edge.nothing


def test_importing_the_package_imports_none_of_its_rooms():
    code = (
        "import sys; before = set(sys.modules); import adafocus_edge; dir(adafocus_edge); "
        "print(sorted(name for name in set(sys.modules) - before if name.partition('.')[0] in "
        "('adafocus_edge', 'numpy', 'msgspec', 'onnxruntime', 'av', 'PIL', 'rich', 'typer', 'typing')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['adafocus_edge']\n"
