"""Tables of reports, for terminals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from adafocus_edge.bundle.variants import ON_CPU
from adafocus_edge.system.console import STYLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adafocus_edge.backends.tensorrt.build import Built
    from adafocus_edge.bundle.engines import Engines
    from adafocus_edge.bundle.manifest import Bundle, Preprocessing, Setting
    from adafocus_edge.model.spec import ModelSpec

MAX_SHOWN_CLASSES = 12
"""With more classes, only JSON and PNG show the confusion matrix."""

MOST_LAYERS = 12
"""Layers in higher precision that a table lists for each variant."""


def build_table(built: Built) -> Table:
    """Return a table of the engines of a build: built or kept, size and time."""
    table = Table(**STYLE)
    for column, justify in (("graph", "left"), ("MB", "right"), ("built in", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in built.rows:
        what = "kept" if row.built is None else f"built: {row.built}"
        table.add_row(row.graph, f"{row.engine.size_bytes / 1e6:.1f}", f"{row.engine.build_s:.1f} s", what)
    return table


def engines_table(bundle: Bundle) -> Table | None:
    """Return a table of the TensorRT engines in a bundle, or None without engines."""
    from adafocus_edge.bundle.engines import engine_folders

    found = engine_folders(bundle)
    if not found:
        return None
    table = Table("engines", "variant", "for", "graphs", "MB", title="TensorRT", **STYLE)
    for folder, engines in found:
        size = sum(info.size_bytes for info in engines.engines.values()) / 1e6
        graphs = " ".join(engines.engines)
        table.add_row(escape(folder.name), engines.variant, escape(where_built(engines)), graphs, f"{size:.1f}")
    return table


def where_built(engines: Engines) -> str:
    """Describe where engines run, and up to which batch."""
    built = engines.built_for
    place = built.device or ", ".join(built.targets)
    return f"{built.library} {built.version}, {place}, batches up to {max(engines.batches)}"


def bundle_tables(bundle: Bundle) -> Iterable[Table]:
    """Yield a bundle's content as tables: model and provenance, graphs, engines, parity report."""
    spec, manifest = bundle.spec, bundle.manifest
    model = Table("model", "", title=escape(str(bundle.path)), **STYLE)
    glance = "" if spec.glance_size == spec.frame_size else f", resized to {spec.glance_size} (nearest)"
    rows = {
        "glancer": f"{spec.glancer}: {spec.glance_dim} features of {spec.frame_size} x {spec.frame_size}{glance}",
        "focuser": f"{spec.focuser}: {spec.focus_dim} features of {spec.patch_size} x {spec.patch_size}",
        "policy": _policy(spec),
        "classifier": f"{spec.consensus}, state {spec.classifier_state}"
        + ("" if spec.with_glancer else ", without the glancer's features"),
        "clip": f"{spec.segments} frames" + (", seen coarse to fine" if spec.order == "frameexit" else ""),
        "classes": f"{spec.classes}: {', '.join(bundle.classes[:4])}{', ...' if spec.classes > 4 else ''}",
        "preprocessing": _preprocessing(manifest.preprocessing),
        "checkpoint": f"{manifest.provenance.checkpoint} (sha256 {manifest.provenance.checkpoint_sha256[:16]}...)",
        "not from the checkpoint": _assumed(manifest.provenance.settings),
        "made": f"{manifest.provenance.created} with "
        + ", ".join(f"{tool} {version}" for tool, version in manifest.provenance.tools.items()),
        "exit thresholds": "; ".join(
            f"{name}: {one.goal}, {one.order}, {one.mean_steps:.2f} steps"
            for name, sets in manifest.thresholds.items()
            for one in sets
        )
        or "none",
        "profiles": "; ".join(
            f"{name}: {one.demand} ({one.backend}, {one.variant}: {one.top1:.1f} %, {one.latency_ms:.1f} ms)"
            for name, one in manifest.profiles.items()
        )
        or "none",
    }
    for name, value in rows.items():
        if value:
            model.add_row(name, escape(value))
    yield model

    for variant, graphs in manifest.variants.items():
        table = Table(title=f"variant {variant}", **STYLE)
        for column in ("graph", "precision", "opset", "inputs", "outputs"):
            table.add_column(column)
        table.add_column("MB", justify="right")
        table.add_column("GFLOPs/step", justify="right")
        table.add_column(f"GFLOPs/clip ({spec.segments})", justify="right")

        def shapes(tensors: Any) -> str:
            return "\n".join(f"{t.name} {t.dtype} [{', '.join(map(str, t.shape))}]" for t in tensors)

        for name, info in graphs.items():
            table.add_row(
                name, info.precision, str(info.opset), shapes(info.inputs), shapes(info.outputs),
                f"{info.size_bytes / 1e6:.1f}", f"{info.gflops:.3f}", f"{info.gflops * spec.segments:.2f}",
            )  # fmt: skip
        mb, step = bundle.totals(variant)
        table.add_section()
        table.add_row("all four", "", "", "", "", f"{mb:.1f}", f"{step:.3f}", f"{step * spec.segments:.2f}")
        yield table
    if (engines := engines_table(bundle)) is not None:
        yield engines
    if parity := manifest.reports.get("parity"):
        yield parity_table(parity["rows"])


def _assumed(settings: Mapping[str, Setting]) -> str:
    """List the settings that came from options or defaults instead of the checkpoint."""
    origins = {"option": "asked for", "default": "assumed"}
    return ", ".join(
        f"{name} {one.value} ({origins[one.origin]}"
        + (f"; trained with {one.trained})" if one.trained is not None else ")")
        for name, one in settings.items()
        if one.origin in origins
    )


def _policy(spec: ModelSpec) -> str:
    choice = "any point" if spec.choice == "point" else f"{spec.grid} x {spec.grid} = {spec.actions} patches"
    return f"{choice}, state {spec.policy_state}"


def _preprocessing(steps: Preprocessing) -> str:
    if steps.fit == "squash":
        text = f"whole frame to {steps.crop} x {steps.crop} ({steps.interpolation})"
    else:
        text = f"short side {steps.short_side} ({steps.interpolation}), centre {steps.crop}"
    gap = steps.motion_gap_s
    return text + (f"; channels: luminance {2 * gap:g} s and {gap:g} s before, and now" if gap else "")


def parity_table(rows: Iterable[dict[str, Any]]) -> Table:
    """Return the export's parity report as a table."""
    table = Table(title="parity with PyTorch", **STYLE)
    for column in ("compared", "batch", "worst output", "largest error", "largest value", "same patches"):
        table.add_column(column, justify="left" if column in ("compared", "worst output") else "right")
    for row in rows:
        same = {True: "yes", False: "NO", None: ""}[row["same_actions"]]
        table.add_row(
            row["what"], str(row["batch"]), row["output"], f"{row['max_error']:.1e}", f"{row['scale']:.3g}", same
        )
    return table


def evaluation_tables(entry: dict[str, Any]) -> Iterable[Table]:
    """Yield an evaluation's JSON object as tables: the figures, the curve, the confusion matrix."""
    figures = Table(title=escape(f"{entry['model']} on {entry['data']}"), show_header=False, **STYLE)
    low, high = entry["top1_interval_95"]
    rows = {
        **({"read with care": "\n".join(entry["notes"])} if entry.get("notes") else {}),
        "clips": f"{entry['clips']}" + (f", {len(entry['failed'])} skipped" if entry["failed"] else ""),
        "ran": entry["ran"],
        "top-1": f"{entry['top1']:.2f} %   (95 %: {low:.1f} to {high:.1f})",
        "top-5": f"{entry['top5']:.2f} %",
        "mAP": f"{entry['mAP']:.3f} %",
        "GFLOPs per clip": f"{entry['gflops_per_clip']:.2f}",
        "ms per clip": f"{entry['model_ms_per_clip']:.1f} model, {entry['read_ms_per_clip']:.1f} reading (medians)",
    }
    if early := entry.get("exit"):
        rows["early exit"] = (
            f"{early['mean_steps']:.2f} glimpses, {early['gflops_per_clip']:.2f} GFLOPs, top-1 {early['top1']:.2f} % "
            f"(as many exits at random: {early['top1_random_exit']:.2f} %)"
        )
    for name, value in rows.items():
        figures.add_row(name, escape(value))
    yield figures
    curve = Table(title="after each glimpse", **STYLE)
    for column in ("glimpses", "top-1", "mAP"):
        curve.add_column(column, justify="right")
    for step in entry["per_step"]:
        curve.add_row(str(step["step"] + 1), f"{step['top1']:.2f}", f"{step['mAP']:.2f}")
    yield curve
    if len(entry["classes"]) > MAX_SHOWN_CLASSES:
        return
    confusion = Table(title="true class (rows), predicted (columns)", **STYLE)
    confusion.add_column("")
    for name in entry["classes"]:
        confusion.add_column(escape(name), justify="right")
    for name, counts in zip(entry["classes"], entry["confusion"], strict=True):
        confusion.add_row(escape(name), *map(str, counts))
    yield confusion


def patches_table(entry: dict[str, Any]) -> Table:
    """Return evaluations of one model on several kinds of patches as one table."""
    table = Table(title=escape(f"{entry['model']} on {entry['data']}"), **STYLE)
    early = any("exit" in found for found in entry["patches"].values())
    columns = ("patches", "top-1", "95 %", "mAP", "GFLOPs per clip", "clips", *(("early exit",) if early else ()))
    for column in columns:
        table.add_column(column, justify="left" if column == "patches" else "right")
    for name, found in entry["patches"].items():
        low, high = found["top1_interval_95"]
        row = [
            name, f"{found['top1']:.2f} %", f"{low:.1f} to {high:.1f}", f"{found['mAP']:.2f} %",
            f"{found['gflops_per_clip']:.2f}", str(found["clips"]),
        ]  # fmt: skip
        if early:
            row.append(f"{found['exit']['top1']:.2f} % after {found['exit']['mean_steps']:.2f}")
        table.add_row(*row)
    return table


def calibration_tables(bundle: Bundle) -> Iterable[Table]:
    """Yield a calibration's report as tables: cost of each variant, each graph alone, exit thresholds."""
    report = bundle.manifest.reports["calibration"]
    rows = report["rows"]
    table = Table(title=escape(f"{bundle.path}: variants"), **STYLE)
    for column in (
        "variant", "for", "MB", "of FP32", "top-1 (95 %)", "same labels", "same patches", "logit error", "ms/clip",
        "ms/step", "times faster",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column in ("variant", "for") else "right")
    for name, row in rows.items():
        low, high = row["top1_interval_95"]
        own = name in ON_CPU
        times = [f"{row[key]:.1f}" if own else f"({row[key]:.1f})" for key in ("ms_per_clip", "ms_per_step")]
        table.add_row(
            name, row["purpose"], f"{row['size_mb']:.1f}", f"{row['share_of_fp32_size']:.0%}",
            f"{row['top1']:.1f} % ({low:.0f} to {high:.0f})", f"{row['label_agreement']:.1f} %",
            f"{row['action_agreement']:.1f} %", f"{row['logit_error_max']:.2g} of {row['logit_scale']:.3g}",
            *times, f"{row['times_faster_per_clip']:.2f}" if own else "",
        )  # fmt: skip
    measured = report["measured"]
    table.caption = escape(
        f"{measured['clips']} clips; on {measured['on']}; in brackets: times of variants made for other hardware"
    )
    table.caption_justify = "left"
    yield table

    graphs = Table(title="each graph alone, before layers were kept (calibration clips)", **STYLE)
    for column in ("variant", "graph", "precision", "points lost (95 %)", "same labels", "same patches", "kept higher"):
        graphs.add_column(column, justify="left" if column in ("variant", "graph", "precision") else "right")
    for name, row in rows.items():
        for graph, found in row.get("graphs_alone", {}).items():
            higher = [entry["layer"] for entry in row["kept"] if entry["graph"] == graph]
            graphs.add_row(
                name, graph, bundle.manifest.variants[name][graph].precision, _points_lost(found),
                f"{found['label_agreement']:.1f} %", f"{found['action_agreement']:.1f} %",
                "all" if "all" in higher else str(len(higher)),
            )  # fmt: skip
    if graphs.row_count:
        yield graphs
    if layers := rows.get("int8-cpu", {}).get("layers"):
        yield _layer_table(layers)
    kept = Table(title="layers kept in higher precision", **STYLE)
    for column in ("variant", "graph", "layer", "why", "error alone", "error saved"):
        kept.add_column(column)
    for name, row in rows.items():
        # The stem is always kept, and counted in the table above.
        entries = [entry for entry in row.get("kept", ()) if entry["error_alone"] or entry["layer"] == "all"]
        for entry in entries[:MOST_LAYERS]:
            errors = [f"{entry[key]:.1%}" if entry[key] else "" for key in ("error_alone", "error_saved")]
            kept.add_row(name, entry["graph"], escape(entry["layer"]), entry["why"], *errors)
        if len(entries) > MOST_LAYERS:
            kept.add_row(name, "", f"{len(entries) - MOST_LAYERS} more", "see --json", "", "")
    if kept.row_count:
        yield kept
    if bundle.manifest.thresholds:
        yield _exit_table(bundle, rows)
    if warnings := report.get("warnings"):
        table = Table("read with care", **STYLE)
        for text in warnings:
            table.add_row(escape(text))
        yield table


def _points_lost(found: dict[str, Any]) -> str:
    """Format lost accuracy with its interval, which reports from before 0.2 do not have."""
    text = f"{found['top1_drop']:.1f}"
    if interval := found.get("top1_drop_interval_95"):
        text += f" ({interval[0]:.0f} to {interval[1]:.0f})"
    return text


def _layer_table(layers: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(title="int8-cpu: where the time of a call goes", **STYLE)
    for column in ("graph", "layers", "fp32 ms", "int8 ms", "times faster"):
        table.add_column(column, justify="left" if column in ("graph", "layers") else "right")
    for graph, kinds in layers.items():
        for entry in kinds:
            kind = f"{entry['layers']} convolutions {entry['kind']}" if entry["layers"] else entry["kind"]
            faster = entry["fp32_ms"] / entry["int8_ms"] if entry["int8_ms"] else 1.0
            table.add_row(graph, kind, f"{entry['fp32_ms']:.2f}", f"{entry['int8_ms']:.2f}", f"{faster:.2f}")
        table.add_section()
    return table


def _exit_table(bundle: Bundle, rows: dict[str, Any]) -> Table:
    table = Table(title=f"early exit (all steps: {bundle.spec.segments})", **STYLE)
    for column in ("set", "solved for", "order", "variant", "mean steps", "GFLOPs", "top-1", "at random", "all steps"):
        table.add_column(column, justify="left" if column in ("set", "solved for", "order", "variant") else "right")
    for name, sets in bundle.manifest.thresholds.items():
        for one in sets:
            for variant, row in rows.items():
                if found := row["exits"].get(name, {}).get(one.order):
                    table.add_row(
                        name, one.goal, one.order, variant, f"{found['mean_steps']:.2f}",
                        f"{found['gflops_per_clip']:.2f}", f"{found['top1']:.1f} %",
                        f"{found['top1_random_exit']:.1f} %", f"{found['top1_all_steps']:.1f} %",
                    )  # fmt: skip
    return table
