"""A bundle as a model repository, on NVIDIA's Triton server itself: the same results as here, and clear errors."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adafocus_edge.api import AdaFocus
from adafocus_edge.backends.registry import load_model
from adafocus_edge.backends.triton.address import Address, parse_address
from adafocus_edge.backends.triton.client import Connection
from adafocus_edge.backends.triton.config import config_of
from adafocus_edge.backends.triton.repository import Builder, check_repository, describe, write_repository
from adafocus_edge.backends.triton.runner import find_served
from adafocus_edge.backends.triton.served import PARAMETER
from adafocus_edge.backends.triton.settings import RepositoryOptions
from adafocus_edge.bundle.engines import BuildOptions, BuiltFor, Engines
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.errors import BackendError, BundleError, ServerLostError, UsageError
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip
from export.fuse import fuse
from export.unroll import unroll
from tests.conftest import CLIPS, edge, one_line_error
from tests.support.live_parts import until
from tests.support.triton_server.server import TritonServer, need_triton

JOINS = {"step": fuse, "clip": unroll}
TOLERANCE = 1e-4
FAMILIES = ["default", "small", "v2"]
"""The default model sees motion in whole frames; the small one is a V1 that differs from the official model wherever it
can; the third is a V2, which chooses points, keeps a maximum, and sees frames from coarse to fine."""
QUANTIZED = "int8"
"""The default model's variant for CPUs, which is served without batches."""


def export(bundle, path, **options):
    """Write a repository from Python."""
    return write_repository(read_bundle(bundle), path, RepositoryOptions(**options), JOINS)


@pytest.fixture(scope="module")
def bundles(small_bundle, v2_bundle):
    return {"default": default_bundle(), "small": small_bundle, "v2": v2_bundle}


@pytest.fixture(scope="module")
def repository(bundles, tmp_path_factory):
    """One repository with the models of all families, as a server may serve it."""
    need_triton()
    folder = tmp_path_factory.mktemp("triton")
    whole = folder / "repository"
    for name, bundle in bundles.items():
        # On a busy machine, requests that are sent together may arrive milliseconds apart.
        sizes = ("--streams", 3, "--clips", 2, "--delay-us", 20_000)
        done = edge("export-triton", bundle, "-o", folder / name, "--name", name, *sizes, "-q")
        assert done.returncode == 0, done.stderr
        shutil.copytree(folder / name, whole, dirs_exist_ok=True)
    export(default_bundle(), folder / QUANTIZED, name=QUANTIZED, variant="int8-cpu", streams=1, clips=1)
    shutil.copytree(folder / QUANTIZED, whole, dirs_exist_ok=True)
    return whole


@pytest.fixture(scope="module")
def lean(bundles, tmp_path_factory):
    """A repository that a server loads quickly, for tests that start it again."""
    need_triton()
    path = tmp_path_factory.mktemp("lean") / "repository"
    export(bundles["small"], path, name="small", clips=1)
    return path


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    with TritonServer(repository, tmp_path_factory.mktemp("server"), lifetime_s=1800) as started:
        yield started


def frames_of(spec, seed, count=None):
    """Random model frames of a clip."""
    shape = (count or spec.segments, spec.frame_size, spec.frame_size, 3)
    return ModelFrame.of(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), spec)


def joined(glimpses):
    """Origins and logits of glimpses, each as one array."""
    glimpses = list(glimpses)
    return np.concatenate([one.origins for one in glimpses]), np.concatenate([one.logits for one in glimpses])


def agree(mine, theirs):
    for own, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(own).max())))


# -- the same results --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILIES, QUANTIZED])
def test_both_schedules_give_what_the_bundle_gives_here(name, server, bundles):
    bundle = read_bundle(bundles.get(name, default_bundle()))
    served = find_served(parse_address(f"{server.address}/{name}"), bundle)
    assert (served.spec, served.classes) == (bundle.spec, bundle.classes)
    frames = frames_of(bundle.spec, 1)
    with load_model(bundle, served.served.variant, "cpu") as here, load_model(served) as there:
        agree(joined(see_clip(here, frames)), joined(see_clip(there, frames)))
        stream, other = GlimpseStream(here), GlimpseStream(there)
        for _ in range(2):  # the second clip begins without a trace of the first
            for frame in frames:
                agree(joined([stream.see([frame])]), joined([other.see([frame])]))
            stream.reset()
            other.reset()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("schedule", ["clip", "stream"])
def test_files_give_the_same_results_without_the_bundle(name, schedule, server, bundles):
    clips = [CLIPS / "R6llTwEh07w.mp4", CLIPS / "v_SoccerJuggling_g23_c01.avi"]
    options = [*clips, "--schedule", schedule, "--json", "--logits", "-q"]
    here = edge("classify", *options, "--bundle", bundles[name])
    there = edge("classify", *options, "--engine", f"{server.address}/{name}")
    assert (here.returncode, there.returncode) == (0, 0), there.stderr
    assert not there.stderr
    for mine, theirs in zip(
        map(json.loads, here.stdout.splitlines()), map(json.loads, there.stdout.splitlines()), strict=True
    ):
        assert theirs["backend"] == "triton"
        assert (mine["source"], mine["label"]) == (theirs["source"], theirs["label"])
        for own, other in zip(mine["steps"], theirs["steps"], strict=True):
            assert (own["frame_index"], own["label"]) == (other["frame_index"], other["label"])
            np.testing.assert_allclose(own["patch"], other["patch"], atol=0.02)
            agree([np.array(own["logits"])], [np.array(other["logits"])])


def test_interleaved_sequences_keep_their_states_apart_and_step_as_batches(server, bundles):
    bundle = read_bundle(bundles["small"])
    served = find_served(parse_address(f"{server.address}/small"))
    clips = [frames_of(bundle.spec, seed) for seed in range(3)]
    before = len(server.batches("small_step"))
    with load_model(bundle, backend="cpu") as here, load_model(served) as there:
        wanted = [joined(see_clip(here, clip)) for clip in clips]
        lanes = there.remote.lanes()
        streams = [lanes.join() for _ in clips]
        seen = {stream: [] for stream in streams}
        turns = [[0, 1], [0, 1, 2], [2], [0, 2], [1, 2], [0, 1, 2], [1], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
        for turn in turns:  # at different speeds, and each for itself
            left = [stream for stream in turn if len(seen[streams[stream]]) < bundle.spec.segments]
            frames = {streams[one]: clips[one][len(seen[streams[one]])] for one in left}
            for stream, glimpse in lanes.step(frames).items() if frames else ():
                seen[stream].append(glimpse)
        for stream, whole in zip(streams, wanted, strict=True):
            got = joined(seen[stream])
            agree([part[: len(got[0])] for part in whole], got)
    assert all(len(glimpses) >= 7 for glimpses in seen.values())
    assert max(server.batches("small_step")[before:]) > 1


def test_a_clip_that_stops_early_leaves_nothing_to_the_next_one(server, bundles):
    bundle = read_bundle(bundles["default"])
    model = AdaFocus(f"{server.address}/default", exit_confidence=0.5)
    local = AdaFocus(bundles["default"], backend="cpu", exit_confidence=0.5)
    for clip in sorted(CLIPS.glob("*.mp4")):
        mine, theirs = local(clip), model(clip)
        assert len(mine.steps) == len(theirs.steps) < bundle.spec.segments
        assert mine.label == theirs.label
        assert mine.confidence == pytest.approx(theirs.confidence, abs=TOLERANCE)


def test_thresholds_of_the_bundle_travel_with_it(tmp_path):
    bundle = read_bundle(default_bundle())
    served = describe(bundle, RepositoryOptions())
    assert served.thresholds == bundle.manifest.thresholds
    assert served.thresholds


def test_evaluate_runs_on_the_server(server, bundles, tmp_path):
    rows = [f"{clip},fight" for clip in sorted(CLIPS.glob("*.mp4"))]
    data = tmp_path / "clips.csv"
    data.write_text("\n".join(["video,class", *rows]) + "\n")
    here = edge("evaluate", bundles["default"], "--data", data, "--json", "-q")
    there = edge("evaluate", "--engine", f"{server.address}/default", "--data", data, "--json", "-q")
    assert (here.returncode, there.returncode) == (0, 0), there.stderr
    mine, theirs = json.loads(here.stdout), json.loads(there.stdout)
    assert theirs["model"] == f"{server.address}/default"
    assert mine["top1"] == theirs["top1"]
    assert mine["gflops_per_clip"] == theirs["gflops_per_clip"]
    done = edge(
        "evaluate", "--engine", f"{server.address}/default", "--data", data, "--patches", "centre", "-q"
    )  # fmt: skip
    one_line_error(done, 1, "single graphs")
    checkpoint = tmp_path / "last.pth.tar"
    checkpoint.touch()
    done = edge("evaluate", checkpoint, "--engine", f"{server.address}/default", "--data", data, "-q")
    one_line_error(done, 2, str(checkpoint), "--engine")


def test_steps_serve_clips_too_where_no_clips_are_served(bundles, tmp_path):
    need_triton()
    export(bundles["small"], tmp_path / "repository", clips=0)
    bundle = read_bundle(bundles["small"])
    frames = frames_of(bundle.spec, 4)
    with TritonServer(tmp_path / "repository", tmp_path) as server:
        with load_model(bundle, backend="cpu") as here, load_model(find_served(parse_address(server.address))) as there:
            agree(joined(see_clip(here, frames)), joined(see_clip(there, frames)))
        with Connection(parse_address(server.address))._client as client:
            names = {model.name for model in client.get_model_repository_index().models}
    assert names == {"adafocus_step"}


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def answers(remote):
    """Whether the server answers: a connection that was lost is made again within a second."""
    try:
        remote.check()
    except ServerLostError:
        return False
    return True


def test_a_server_that_is_restarted_is_found_again_and_its_lost_states_are_reported(lean, bundles, tmp_path):
    bundle = read_bundle(bundles["small"])
    frames = frames_of(bundle.spec, 6)
    with TritonServer(lean, tmp_path) as server, ExitStack() as stack:
        served = find_served(parse_address(f"{server.address}/small?timeout=5"))
        there = stack.enter_context(load_model(served))
        here = stack.enter_context(load_model(bundle, backend="cpu"))
        lanes = there.remote.lanes()
        stream = lanes.join()
        lanes.step({stream: frames[0]})
        server.kill()
        with pytest.raises(ServerLostError, match="no server answers there"):
            lanes.step({stream: frames[1]})
        with pytest.raises(ServerLostError, match="no server answers there"):
            there.remote.check()
        server.start()
        until(lambda: answers(there.remote))
        glimpses = [lanes.step({stream: frame})[stream] for frame in frames]  # from the beginning
        agree(joined(see_clip(here, frames)), joined(glimpses))

        lanes.restart(stream)
        lanes.step({stream: frames[0]})
        server.kill()
        server.start()
        until(lambda: answers(there.remote))  # so quickly that no step has failed
        with pytest.raises(ServerLostError, match="lost the state of a stream"):
            lanes.step({stream: frames[1]})


def test_a_server_with_another_model_after_a_restart_is_refused(bundles, tmp_path):
    need_triton()
    path = tmp_path / "repository"
    export(bundles["small"], path)
    with TritonServer(path, tmp_path) as server:
        with load_model(find_served(parse_address(server.address))) as there:
            lanes = there.remote.lanes()
            stream = lanes.join()
            lanes.step({stream: frames_of(there.spec, 0)[0]})
            server.kill()
            with pytest.raises(ServerLostError):
                lanes.step({stream: frames_of(there.spec, 0)[1]})
            export(bundles["small"], path, force=True, streams=5)
            server.start()
            with pytest.raises(BackendError, match="model has changed meanwhile"):
                until(lambda: answers(there.remote))
        done = edge("classify", CLIPS, "--engine", server.address, "--bundle", bundles["default"], "-q")
        one_line_error(done, 2, server.address, "another model than", "export-triton")
        done = edge("classify", CLIPS, "--engine", f"{server.address}?version=7", "-q")
        one_line_error(done, 1, server.address, "adafocus_step version 7")
        done = edge("classify", CLIPS, "--engine", f"{server.address}/other", "-q")
        one_line_error(done, 1, f"{server.address}/other", "does not serve other_step")
        done = edge("classify", CLIPS, "--engine", server.address, "--variant", "fp16", "-q")
        one_line_error(done, 2, "fp16", "fp32")
        done = edge("classify", CLIPS, "--engine", server.address, "--backend", "cpu", "-q")
        one_line_error(done, 2, "--backend", "server decides")


def test_a_server_that_hangs_is_given_up_after_the_timeout(lean, tmp_path):
    with TritonServer(lean, tmp_path) as server:
        with load_model(find_served(parse_address(f"{server.address}/small?timeout=0.5"))) as there:
            frames = frames_of(there.spec, 0)
            server.freeze()
            with pytest.raises(ServerLostError, match="no answer in time"):
                list(see_clip(there, frames))
        done = edge("classify", CLIPS, "--engine", f"{server.address}/small?timeout=0.5", "-q")
        one_line_error(done, 1, server.address, "no answer in time")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("triton://127.0.0.1:9", ["triton://127.0.0.1:9", "no server answers there"]),
        ("triton://no-such-host.invalid:8001", ["no-such-host.invalid", "no server answers there"]),
    ],
)
def test_where_no_server_is_one_line_says_so(address, words):
    one_line_error(edge("classify", CLIPS, "--engine", f"{address}?timeout=3", "-q"), 1, *words)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("triton://", "not an address"),
        ("triton://host:port", "not an address"),
        ("triton://host/a/b", "not an address"),
        ("triton://me@host", "not an address"),
        ("triton://host?speed=3", "speed is unknown"),
        ("triton://host?version=0", "version 0: must be"),
        ("triton://host?timeout=-1", "timeout: must be"),
        ("http://host:8001", "--engine http://host:8001: must be"),
        ("cluster", "--engine cluster: must be"),
    ],
)
def test_addresses_that_are_none_are_refused(address, words):
    one_line_error(edge("classify", CLIPS, "--engine", address, "-q"), 2, words)


def test_addresses_are_parsed():
    assert parse_address("triton://host") == Address("host", 8001)
    assert parse_address("triton://[::1]:81/fights?version=3&timeout=5") == Address("::1", 81, "fights", 3, 5.0)
    assert parse_address("triton://[::1]:81").target == "[::1]:81"


# -- the repository ----------------------------------------------------------------------------------------------------


def test_a_repository_is_checked_by_every_hash(bundles, tmp_path):
    path = tmp_path / "repository"
    done = edge("export-triton", bundles["small"], "-o", path, "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"] == ["adafocus_step", "adafocus_clip"]
    done = edge("export-triton", bundles["small"], "-o", path, "--check")
    assert done.returncode == 0, done.stderr
    assert "intact" in done.stdout
    one_line_error(edge("export-triton", bundles["v2"], "-o", path, "--check"), 2, "another bundle")
    one_line_error(edge("export-triton", bundles["small"], "-o", path), 2, str(path), "--force")
    extra = path / "adafocus_step" / "2" / "model.onnx"
    extra.parent.mkdir()
    extra.write_bytes(b"another version")
    one_line_error(edge("export-triton", "-o", path, "--check"), 1, str(extra), "remove it")
    shutil.rmtree(extra.parent)
    config = path / "adafocus_clip" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 4", "max_batch_size: 8"))
    one_line_error(edge("export-triton", "-o", path, "--check"), 1, str(config), "SHA-256")
    (path / "adafocus-edge.json").unlink()
    with pytest.raises(BundleError, match="not a model repository"):
        check_repository(path)
    with pytest.raises(UsageError, match="is not a model repository"):
        export(bundles["small"], path, force=True)


def test_a_repository_appears_whole_or_not_at_all(bundles, tmp_path):
    path = tmp_path / "repository"
    first = export(bundles["small"], path)

    def broken(spec, graphs, target):
        target.write_bytes(b"half a graph")
        raise BundleError("the disk is full")

    with pytest.raises(BundleError, match="the disk is full"):
        write_repository(
            read_bundle(bundles["small"]), path, RepositoryOptions(force=True), {"step": fuse, "clip": broken}
        )
    assert check_repository(path) == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["repository"]
    with pytest.raises(BundleError):
        write_repository(
            read_bundle(bundles["small"]), tmp_path / "other", RepositoryOptions(), {**JOINS, "clip": broken}
        )
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "a/b"}, "--name a/b"),
        ({"streams": 0}, "--streams 0"),
        ({"variant": "none"}, "no variant 'none'"),
        ({"variant": "int8-cpu"}, "--streams 1 --clips 1"),
        ({"variant": "int8-cpu", "backend": "tensorrt", "streams": 1, "clips": 1}, "--backend tensorrt takes"),
        ({"backend": "tensorrt", "device": "cpu"}, "--device cpu"),
    ],
)
def test_options_that_do_not_suit_are_refused(options, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        export(default_bundle(), tmp_path / "repository", **options)


def test_a_clip_of_many_frames_is_served_as_steps_only(bundles):
    bundle = read_bundle(bundles["small"])
    long = replace(bundle, manifest=replace(bundle.manifest, model=replace(bundle.spec, segments=200)))
    with pytest.raises(UsageError, match="--clips 0"):
        describe(long, RepositoryOptions())
    assert describe(long, RepositoryOptions(clips=0)).clips == 0


def parsed(text):
    """A configuration by Triton's own protobuf, which refuses unknown fields and wrong types."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("name", FAMILIES)
def test_configurations_are_tritons(backend, name, bundles):
    options = RepositoryOptions(backend=backend, device="auto", streams=5, clips=3, instances=2, version=4)
    served = describe(read_bundle(bundles[name]), options)
    step, clip = (parsed(config_of(graph, served, options)) for graph in ("step", "clip"))
    spec = served.model
    assert (step.backend, clip.backend) == (backend, backend)
    assert (step.max_batch_size, clip.max_batch_size) == (5, 3)
    assert [list(one.version_policy.specific.versions) for one in (step, clip)] == [[4], [4]]
    states = {state.input_name: state for state in step.sequence_batching.state}
    assert {name: list(state.dims) for name, state in states.items()} == {
        "policy_state": [spec.policy_state], "state": [spec.classifier_state],
    }  # fmt: skip
    assert all(state.initial_state[0].zero_data for state in states.values())
    # Triton pairs the states of both sides by the order of their names.
    assert [states[name].output_name for name in sorted(states)] == sorted(s.output_name for s in states.values())
    assert [list(tensor.dims) for tensor in clip.input] == [[spec.segments, spec.frame_size, spec.frame_size, 3]]
    assert [sample.batch_size for sample in clip.model_warmup] == [1, 3]
    assert clip.HasField("dynamic_batching")
    assert step.instance_group[0].count == 2
    assert json.loads(step.parameters[PARAMETER].string_value)["classes"] == list(served.classes)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="TensorRT-RTX's wheels are for x86-64 Linux"
)
def test_a_repository_for_tensorrt_holds_engines(bundles, tmp_path):
    """TensorRT itself builds on a GPU only: here TensorRT-RTX builds, whose engines Triton would refuse."""
    from adafocus_edge.backends.tensorrt.build import build_engine, find_target
    from adafocus_edge.backends.tensorrt.library import find_library

    library = find_library("tensorrt-rtx")
    target = BuiltFor(library.name, library.version, "", find_target(library, ("sm_89",))[0].targets)
    shapes = {}

    def build(path: Path, graph: str, batch: int) -> bytes:
        wanted = Engines(target, "", BuildOptions(streams=batch), (batch,))
        shapes[graph] = batch
        return build_engine(library, path, graph, wanted, 0, tmp_path / "cache", lambda *_: None, lambda: None)

    options = RepositoryOptions(backend="tensorrt", streams=2, clips=2)
    made = write_repository(
        read_bundle(default_bundle()), tmp_path / "repository", options, JOINS, Builder(build, {"rtx": library.version})
    )
    assert shapes == {"step": 2, "clip": 2}
    assert {name for name in made.files if name.endswith(("plan", "onnx"))} == {
        "adafocus_step/1/model.plan", "adafocus_clip/1/model.plan",
    }  # fmt: skip
    assert check_repository(tmp_path / "repository") == made
    done = edge("export-triton", "-o", tmp_path / "other", "--backend", "tensorrt")
    one_line_error(done, 1, "TensorRT")
    assert not (tmp_path / "other").exists()
