"""Tables of results, from the reports in benchmarks/results: each keeps the machine and the command that made it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.manual.tables import table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
CALIBRATED = {"calibrate-fights": "default recipe, unseen scenes", "calibrate-acts": "official preset, generated clips"}
LAYERED = {"calibrate-fights": "default recipe", "calibrate-acts": "official"}
MEASURED_ON_OTHERS = ("int8-trt", "fp16")
"""Variants whose times on a CPU say nothing about the devices that they are for."""
OTHER_LAYERS = "crop, resize, normalisation, additions, pooling"
LAYER_MODELS = {"default": "default model", "official": "official, 128 x 128"}
LEAST_SHARE = 0.02
"""Share of the time below which a kind of layer is counted with others."""
LIVE_MODELS = {"official": "official (ResNet-50, 128 x 128)"}


def report(name: str) -> dict[str, Any]:
    """Return a report of benchmarks/results."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text("utf-8")))


def machine(name: str) -> str:
    """Return the machine of a report, the versions of its libraries, and the command where the report has it."""
    made = report(name)
    about = made["machine"]
    versions = ", ".join(f"{library} {version}" for library, version in about["versions"].items())
    command = f" Command: `{made['command']}`." if "command" in made else ""
    return f"Machine: {about['processor']}; {about['memory']}; Python {about['python']}; {versions}.{command}"


def stages(name: str = "stages") -> str:
    """Return accuracy and cost after each stage."""
    rows = []
    for one in report(name)["rows"]:
        low, high = one["interval_95"]
        rows.append(
            (
                one["row"],
                f"{one['gflops_per_clip']:.2f}",
                f"{one['top1']:.1f} %",
                f"{low:.0f} to {high:.0f}",
                ", ".join(f"{fold:.1f}" for fold in one["top1_by_fold"]),
                f"{one['mAP_mean_of_folds']:.1f}",
            )
        )
    return table(("", "GFLOPs per clip", "top-1", "95 %", "per fold", "mAP"), rows)


def policy() -> str:
    """Return what places of patches give, and policies by their estimators and numbers of updates."""
    rows = (
        (
            one["patches"],
            *(f"{one[part]['top1']:.1f} %" for part in ("train", "val")),
            *(f"{one[part]['confidence']:.3f}" for part in ("train", "val")),
            f"{one['val']['most_used_cell']:.0f} %",
        )
        for one in report("policy")["rows"]
    )
    header = ("patches", "top-1, trained on", "unseen", "confidence, trained on", "unseen", "most-used cell, unseen")
    return f"{table(header, rows)}\n\n{machine('policy')}"


def haystack() -> str:
    """Return accuracy and cost of every model and kind of patches of the policy test."""
    rows = []
    for one in report("haystack")["rows"]:
        low, high = one["interval_95"]
        gflops, times = f"{one['gflops_per_clip']:.2f}", f"{one['model_ms_per_clip']:.0f}"
        rows.append((one["row"], f"{one['top1']:.1f} %", f"{low:.0f} to {high:.0f}", gflops, times))
    return table(("", "top-1", "95 %", "GFLOPs per clip", "ms per clip"), rows)


def calibration() -> str:
    """Return what each variant costs, by model."""
    rows = []
    for name, model in CALIBRATED.items():
        for number, (variant, one) in enumerate(report(name)["rows"].items()):
            low, high = one["top1_interval_95"]
            elsewhere = variant in MEASURED_ON_OTHERS
            times = (f"{one['ms_per_clip']:.1f}", f"{one['ms_per_step']:.1f}")
            rows.append(
                (
                    "" if number else model,
                    variant,
                    f"{one['size_mb']:.1f}",
                    f"{100 * one['share_of_fp32_size']:.0f} %",
                    f"{one['top1']:.1f} % ({low:.0f} to {high:.0f})",
                    f"{one['label_agreement']:.1f} %",
                    f"{one['action_agreement']:.1f} %",
                    f"{one['logit_error_max']:.2g} of {one['logit_scale']:.1f}",
                    *((f"({time})" for time in times) if elsewhere else times),
                    "" if elsewhere else f"{one['times_faster_per_clip']:.2f}",
                )
            )
    return table(
        ("", "variant", "MB", "of plain FP32", "top-1 (95 %)", "same labels", "same patches", "logit error",
         "ms per clip", "ms per step", "times faster"),
        rows,
    )  # fmt: skip


def calibration_layers() -> str:
    """Return where INT8 gains time and where it does not, by graph and kind of layer."""
    rows = []
    for name, model in LAYERED.items():
        for graph, kinds in report(name)["rows"]["int8-cpu"]["layers"].items():
            for one in kinds:
                count = one["layers"]
                convolutions = f"{count} convolution{'s' * (count != 1)} {one['kind']}"
                rows.append(
                    (
                        f"{model}, {graph}",
                        OTHER_LAYERS if one["kind"] == "everything else" else convolutions,
                        f"{one['fp32_ms']:.2f}",
                        f"{one['int8_ms']:.2f}",
                        f"{one['fp32_ms'] / one['int8_ms']:.2f}",
                    )
                )
    return table(("graph", "layers", "FP32 ms", "INT8 ms", "times faster"), rows)


def layers() -> str:
    """Return what each kind of layer costs in a clip, against the machine's peak."""
    found = report("layers")
    rows = []
    for model in found["models"]:
        name = f"{LAYER_MODELS.get(model['model'], model['model'])}, {model['variant']}"
        shown = [one for one in model["rows"] if one["share"] >= LEAST_SHARE]
        for one in shown:
            counted = one["gmacs"] > 0
            speed = (f"{one['gmacs_per_s']:.0f}", f"{one['of_peak']:.0%}") if counted else ("", "")
            kind = f"{one['graph']}: {one['kind']}"
            rows.append((name, kind, one["type"], f"{one['ms']:.1f}", f"{one['share']:.0%}", *speed))
        whole_ms = sum(one["ms"] for one in model["rows"])
        left_ms = whole_ms - sum(one["ms"] for one in shown)
        rows.append((name, "all others", "", f"{left_ms:.1f}", f"{left_ms / whole_ms:.0%}", "", ""))
    peak = ", ".join(f"{rate:.0f} in {kind.upper()}" for kind, rate in found["peak_gmacs_per_s"].items())
    header = ("", "layers", "type", "ms per clip", "of all", "G multiply-adds/s", "of the peak")
    one = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
    return f"{table(header, rows)}\n\nThe peak of {one}: {peak} (G multiply-adds per second). {machine('layers')}"


def exits() -> str:
    """Return what each set of exit thresholds does on the clips that report."""
    rows = []
    of = report("calibrate-fights")["rows"]
    for name in of["fp32"]["exits"]:
        for order in of["fp32"]["exits"][name]:
            for variant in ("fp32", "int8-cpu"):
                one = of[variant]["exits"][name][order]
                rows.append(
                    (
                        name,
                        order,
                        variant,
                        f"{one['mean_steps']:.2f}",
                        f"{one['gflops_per_clip']:.2f}",
                        *(f"{one[key]:.1f} %" for key in ("top1", "top1_random_exit", "top1_all_steps")),
                    )
                )
    return table(("set", "order", "variant", "mean steps of 8", "GFLOPs", "top-1", "at random", "all steps"), rows)


def front(name: str) -> str:
    """Return every row of a benchmark's report; rows on the front are in bold."""
    made = report(name)
    return "\n\n".join((table(FRONT_HEADER, _front_rows(made)), f"{machine(name)} Report of {made['created']}."))


FRONT_HEADER = (
    "setting", "top-1 (95 %)", "glimpses", "GFLOPs", "ms per clip in the model", "p95", "ms with decoding",
    "times eager PyTorch", "MB", "cold start, ms",
)  # fmt: skip


def _front_rows(made: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    eager = {one["bundle"]: one["model_ms"]["median"] for one in made["rows"] if one["backend"] == "pytorch-eager"}
    for one in made["rows"]:
        setting = one["backend"] if one["peer"] else f"`{one['variant']}` {one['schedule']}"
        if one["exit"]:
            setting += f", `--exit {one['exit']}`"
        if setting.startswith("checkpoint:"):
            setting = "stage 0: the glancer with its own classifier, PyTorch"
        if len(eager) > 1:
            setting = f"{one['bundle'].removesuffix('-bundle').upper()}: {setting}"
        accuracy = None
        if one.get("top1") is not None:
            low, high = one["top1_interval_95"]
            accuracy = f"{one['top1']:.1f} % ({low:.0f} to {high:.0f})"
        time = one["model_ms"]
        yield (
            f"**{setting}**" if one["on_front"] else setting,
            accuracy,
            f"{one['mean_steps']:.1f}",
            f"{one['gflops_per_clip']:.2f}",
            f"{time['median']:.1f} ± {time['spread']:.1f}",
            f"{time['p95']:.0f}",
            f"{one['whole_ms']['median']:.0f}",
            f"{eager[one['bundle']] / time['median']:.1f}",
            None if one["size_mb"] is None else f"{one['size_mb']:.1f}",
            None if one["cold_start_ms"] is None else f"{one['cold_start_ms']:,.0f}",
        )


def loop() -> str:
    """Return the glimpse loop of each family against eager PyTorch, and the bundle's time by part."""
    models = report("loop")["models"]
    rows = [
        (f"{name.upper()}, {label}{shown}", f"{one['eager_median']:,.{digits}f} ms",
         f"{one[f'{way}_median']:.{digits}f} ms", f"{one[ratio]:.1f}")
        for name, made in models.items()
        for label, key, digits in (("16-frame clip", "clip", 0), ("streamed frame", "stream", 1))
        for one in (made[key],)
        for shown, way, ratio in ((", FP32", "bundle", "ratio_median"), (", INT8", "int8", "int8_ratio_median"))
        if ratio in one
    ]  # fmt: skip
    clips = {name.upper(): made["clip"]["bundle_parts_median"] for name, made in models.items()}
    parts = [(name, *(f"{ms:.1f}" for ms in found.values())) for name, found in clips.items()]
    header = ("ms of a clip in the bundle", *next(iter(clips.values())))
    times = table(("", "eager PyTorch", "bundle, ONNX Runtime", "times faster"), rows)
    return f"{times}\n\n{table(header, parts)}\n\n{machine('loop')}"


def long_file() -> str:
    """Return a long file: decoded whole, and classified in each mode of ``--decode``."""
    rows = (
        (
            f"{one['key_frame_every']} frames" + (" (x264's maximum by default)" * (one["key_frame_every"] == 250)),
            f"`{one['decode']}`",
            f"{one['decode_whole_s']:.1f} s",
            f"{one['classified_s']:.2f} s",
            f"{one['ratio_median']:.1f}",
            f"{one['decode_whole_cpu_s'] / one['classified_cpu_s']:.1f}",
        )
        for one in report("long_file")["rows"]
    )
    header = ("a key frame every", "`--decode`", "decoded whole", "classified", "times faster", "times less CPU")
    return table(header, rows) + f"\n\n{machine('long_file')}"


def decode_modes() -> str:
    """Return what the modes of ``--decode`` change in frames and labels."""
    rows = []
    for one in report("decode_modes")["rows"]:
        coding = one["codec"] if one["crf"] is None else f"{one['codec']}, CRF {one['crf']}"
        if one["key_frame_every"] is not None and one["key_frame_every"] < 1000:
            coding += f", a key frame every {one['key_frame_every']}"
        right = "" if "right" not in one else f"{one['right_exact']} → {one['right']}"
        rows.append(
            (
                one["mode"] if one["mode"] == "redrawn" else f"`{one['mode']}`",
                f"{one['clips']} {one['data']}",
                coding,
                f"{one['moved_frames']:.0%}",
                f"{one['mean_grey']:.2f}",
                str(one["max_grey"]),
                f"{one['confidence_shift']:.3f}",
                f"{one['same_label']:.1%}",
                right,
            )
        )
    rows.sort(key=lambda row: row[0] != "`unfiltered`")
    header = (
        "frames", "clips", "encoding", "other frames", "mean grey levels", "max", "change of confidence", "same label",
        "right labels",
    )  # fmt: skip
    return table(header, rows) + f"\n\n{machine('decode_modes')}"


def whole() -> str:
    """Return the whole from file to answer, before and after, and early exits."""
    parts = report("whole")["parts"]
    folder, read, start = parts["folder"]["runs"], parts["reading"]["runs"], parts["start"]
    before, now = folder["old"], folder["pipeline"]
    pairs = [
        ("a folder of clips, per second", before["clips_per_s"], now["clips_per_s"], ""),
        ("the same, processor time per clip", before["cpu_ms_per_clip"], now["cpu_ms_per_clip"], " ms"),
        ("the same, cores busy", before["busy"] * 100, now["busy"] * 100, " %"),
        ("the same, memory", before["peak_mb"], now["peak_mb"], " MB"),
        ("reading a clip, processor time", read["old"]["read"]["cpu_ms"], read["new"]["read"]["cpu_ms"], " ms"),
        ("reading a clip, time", read["old"]["read"]["wall_ms"], read["new"]["read"]["wall_ms"], " ms"),
        ("first result, processor time", start["classify"]["old"]["cpu_ms"], start["classify"]["new"]["cpu_ms"], " ms"),
        ("`--help`, processor time", start["help"]["old"]["cpu_ms"], start["help"]["new"]["cpu_ms"], " ms"),
    ]  # fmt: skip
    rows = [(what, f"{old:.1f}{unit}", f"{new:.1f}{unit}", f"{new / old:.2f}") for what, old, new, unit in pairs]
    return table(("", "before", "now", "ratio"), rows) + f"\n\n{machine('whole')}"


PEERS = {
    "ours": "`classify FOLDER`",
    "ours, OpenVINO": "the same, `--backend openvino`",
    "decord": "decord, ONNX Runtime",
    "torchcodec": "torchcodec, ONNX Runtime",
    "opencv": "OpenCV, eager PyTorch (random weights)",
}
"""What the peers of a folder are called."""


def peers() -> str:
    """Return a folder classified by us and by hand."""
    found = report("whole")["parts"]["peers"]
    ours, rows = found["runs"]["ours"], []
    for name, one in found["runs"].items():
        same = found["same_labels"].get(name)
        rows.append(
            (PEERS[name], f"{one['clips_per_s']:.1f}", f"{ours['clips_per_s'] / one['clips_per_s']:.1f}",
             f"{one['cpu_ms_per_clip']:.0f} ms", f"{one['peak_mb']:.0f} MB", "" if same is None else f"{same:.1%}")
        )  # fmt: skip
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    header = ("", "clips per second", "ours is faster by", "processor time per clip", "memory", "labels as ours")
    return f"{table(header, rows)}\n\n{found['clips']} clips, {versions}. {machine('whole')}"


def early_exits() -> str:
    """Return the time of the glimpse loop with each exit set, before and after."""
    runs = report("whole")["parts"]["exits"]["runs"]
    rows = []
    for setting, new in runs["new"].items():
        variant = setting.rpartition(" ")[0]
        full = {home: runs[home][f"{variant} all"] for home in ("old", "new")}
        shares = [runs[home][setting]["wall_ms"] / full[home]["wall_ms"] for home in ("old", "new")]
        steps = new["steps"] / full["new"]["steps"]
        times = [f"{runs[home][setting]['wall_ms']:.1f} ms" for home in ("old", "new")]
        rows.append((setting, f"{new['steps']:.1f}", f"{steps:.0%}", *times, *(f"{share:.0%}" for share in shares)))
    header = ("", "glimpses", "of all", "before", "now", "of all, before", "of all, now")
    return table(header, rows)


def live() -> str:
    """Return live runs beside a plain loop."""
    rows = (
        (
            f"{LIVE_MODELS.get(one['model'], one['model'])}, {one['asked_per_s']:.0f}",
            "live run" if one["way"] == "ours" else "plain loop",
            f"{one['glimpses_per_s']:.1f}/s",
            one["dropped"],
            *(f"{one[key]:.0f} ms" for key in ("p50_ms", "p95_ms", "p99_ms")),
            f"{one['cpu']:.2f}",
            f"{one['behind_s']:.1f} s",
        )
        for one in report("live")["rows"]
    )
    header = ("model, glimpses requested per second", "", "processed", "dropped", "p50", "p95", "p99", "cores",
              "behind the camera after 20 s")  # fmt: skip
    return table(header, rows) + f"\n\n{machine('live')}"


LOADER_ROWS = {
    "pyav": "bare decoding (PyAV), nothing else",
    "torchcodec": "torchcodec, decoded to RGB",
    "off": "an epoch with `cache=off`",
    "first": "the first epoch with `cache=ram`",
    "ram": "later epochs with `cache=ram`, cropped by the workers",
    "ram, device": "later epochs with `cache=ram`, cropped by the GPU",
    "disk": "later epochs with `cache=disk`, cropped by the workers",
}
"""What the rows of ``benchmarks/loader.py`` are."""


def loader() -> str:
    """Return clips per second and core of the training data loader."""
    made = report("loader")
    kinds = ("short, official", "short, edge", "long, official", "frames, official")
    rows = [(label, *(_loaded(made[kind].get(key)) for kind in kinds)) for key, label in LOADER_ROWS.items()]
    header = ("ms per clip (times bare decoding)", "short clips, `official`", "short clips, `edge`",
              "40 s of 1080p, `official`", "folder of JPEGs, `official`")  # fmt: skip
    return table(header, rows) + f"\n\n{machine('loader')}"


def _loaded(row: Any) -> str:
    """Return a row's figures; a row that was not run is a reason in words, or is not there."""
    if not isinstance(row, dict):
        return ""
    return f"{row['ms_per_clip_median']:,.1f} ({row['times_of_pyav']:.2f})"


def fuzz() -> str:
    """Return the recorded run of hostile inputs, by target."""
    made = report("fuzz")
    rows = [
        (name, one.get("result"), one.get("refused"), one.get("requests"), one.get("slowest_s"))
        for name, one in made["targets"].items()
    ]
    header = ("target", "results", "refusals", "requests", "slowest, s")
    return f"{table(header, rows)}\n\n{made['inputs']:,} inputs, {len(made['findings'])} findings. {machine('fuzz')}"
