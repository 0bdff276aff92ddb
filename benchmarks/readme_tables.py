"""Writes the tables of docs/results.md, quality.md, at-scale.md and the README from committed rows.

    python benchmarks/readme_tables.py

A test holds them to what this makes of `benchmarks/results`, so no number there can drift.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import batch
import busy_machine
import ops
import serving_simulation
from models.prefill_table import EXPLANATION, whole_model
from models.shapes import RECORDED
from quality.page import in_short, page, read_times
from rows import COMPILED, EAGER, LIBRARY, OURS, Row, read_json
from table import by_case, duration, markdown_table, size

from clasp_kernels.backends.table import OPS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu"
BEGIN, END = "<!-- results: benchmarks/readme_tables.py -->\n", "<!-- end of results -->"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "results.md"
QUALITY_PAGE = ROOT / "docs" / "quality.md"
AT_SCALE_PAGE = ROOT / "docs" / "at-scale.md"
QUALITY = RESULTS / "quality"
# The op cases of the README's table.
FRONT = {
    "select_tokens": "8x576x1024 bfloat16 R64 P32 clusters",
    "attention_salience": "B1 T32 S640 float32 H32/32 d128",
    "fuse_layers": "8x576x1024 bfloat16 L4 categories",
}


def stages_table(report: dict[str, Any]) -> str:
    """A row for each schedule: the ways of choosing inside the decoder, beside input pruning."""
    ways = [(salience, on) for salience in ("last", "instruction") for on in ("hidden", "fused")]
    before: dict[int, float] = {}
    found: dict[str, dict[tuple[str, str], float]] = {}
    means: dict[str, float] = {}
    for row in report["rows"]:
        schedule, mean = row["schedule"], row["mean_tokens"]
        if "salience_rows" in row:
            way = row["salience_rows"], row["completion_on"]
            found.setdefault(schedule, {})[way] = row["overall"]
            means[schedule] = mean
        else:
            before[round(mean)] = row["overall"]
    return markdown_table(
        ["schedule", "mean kept", *map(", ".join, ways), "before the LLM, as many"],
        [
            [
                f"`{schedule}`",
                f"{means[schedule]:.1f}",
                *(f"{overall[way]:.3f}" for way in ways),
                f"{before[round(means[schedule])]:.3f}",
            ]
            for schedule, overall in found.items()
        ],
    )


def speed_table(rows: Iterable[Row]) -> str:
    """The telling cases among what is recorded."""
    lines = []
    for (op, case), implementations in by_case(rows).items():
        ours = implementations[OURS]
        if case not in ops.load(op).telling:
            continue
        lines.append(
            [
                f"`{op}`",
                case,
                duration(ours.median_us),
                _fastest(implementations, EAGER),
                _fastest(implementations, COMPILED),
                _times(ours.speedup_over_best_baseline),
                _times(ours.times_floor),
            ]
        )
    header = ["op", "case", "ours", "best eager", "best compiled", "ratio", "ours / floor"]
    return markdown_table(header, lines)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}x"


def _fastest(implementations: dict[str, Row], kind: str) -> str:
    medians = [row.median_us for row in implementations.values() if row.kind == kind]
    return duration(min(medians)) if medians else "-"


def _where(environments: list[dict[str, Any]]) -> str:
    """Where all of them were taken: ratios and floors of several machines are no table."""
    places = {
        f"{it['processor']}, {it['threads']} threads, torch {it['torch']}" for it in environments
    }
    if len(places) != 1:
        raise ValueError(f"the results are from different places, run make bench: {places}")
    return places.pop()


def memory(measured: list[dict[str, Any]]) -> str:
    """A sentence on the peak of ``select_tokens``: where it comes closest to its limit."""
    rows = [row for row in measured if row["op"] == "select_tokens"]
    ours = [row for row in rows if row["implementation"] == OURS]
    closest = max(ours, key=lambda row: row["peak_bytes"] / row["limit_bytes"])
    share = closest["peak_bytes"] / closest["limit_bytes"]
    gram = next(
        row
        for row in rows
        if row["case"] == closest["case"] and row["implementation"] == "eager-gram"
    )
    return (
        "Beyond inputs and outputs `select_tokens` takes at most "
        f"{share:.0%} of 8 bytes x B x N x P, its limit, at any of the shapes measured (at "
        f"{closest['case']}: {size(closest['peak_bytes'])}, the eager N x N matrix "
        f"{size(gram['peak_bytes'])}).\n"
    )


def slower(rows: Iterable[Row]) -> str:
    """Every case in which a baseline that computes the same is faster, by op."""
    cases: dict[str, list[str]] = {}
    compared = 0
    for row in rows:
        ratio = row.speedup_over_best_baseline
        compared += ratio is not None
        if ratio is not None and ratio < 1:
            cases.setdefault(row.op, []).append(f"{row.case} ({ratio:.3g}x)")
    count = sum(map(len, cases.values()))
    lines = [f"- `{op}`: {', '.join(found)}\n" for op, found in cases.items()]
    listed = ":\n\n" + "".join(lines) if lines else ".\n"
    return f"A baseline is faster in {count} of {compared} cases{listed}"


def covering(rows: Iterable[Row], measured: Iterable[dict[str, Any]]) -> str:
    """What ``cover_tokens`` reaches of its targets: 8x over eager, 5x over other packages."""
    eager: list[float] = []
    packages: dict[str, list[float]] = {}
    reachable: dict[str, list[float]] = {}
    for implementations in by_case(rows).values():
        ours = implementations[OURS]
        best = min(
            row.median_us for row in implementations.values() if row.kind in (EAGER, COMPILED)
        )
        eager.append(best / ours.median_us)
        assert ours.floor_us is not None
        shape = f"{ours.shape['num_tokens']} tokens in {ours.shape['dtype']}"
        reachable.setdefault(shape, []).append(best / ours.floor_us)
        for row in implementations.values():
            if row.kind == LIBRARY:
                ratios = packages.setdefault(row.implementation, [])
                ratios.append(row.median_us / ours.median_us)
    libraries = [ratio for ratios in packages.values() for ratio in ratios]
    floors = [f"{_range(ratios)} for {shape}" for shape, ratios in reachable.items()]
    others = [f"{_range(ratios)} over `{name}`" for name, ratios in packages.items()]
    peaks = {
        row["case"]: row["peak_bytes"]
        for row in measured
        if row["op"] == "cover_tokens" and row["implementation"] == OURS
    }
    largest = max(peaks, key=peaks.__getitem__)
    return (
        f"`cover_tokens` {_verdict(eager, 8)} its target of 8x over the best eager or compiled "
        f"formulation: {_range(eager)}. At its floor, which is the similarity of every pair once, "
        f"it would reach {', '.join(floors)}; for bfloat16, the floor counts on instructions that "
        f"these kernels do not use. It {_verdict(libraries, 5)} its target of 5x "
        f"over other packages: {' and '.join(others)}. Beyond inputs and outputs it takes up to "
        f"{size(peaks[largest])} (at {largest}): the N x N similarities are kept while they fit in "
        "64 MiB.\n"
    )


def _verdict(ratios: list[float], target: float) -> str:
    return "meets" if min(ratios) >= target else "misses"


def _range(ratios: list[float]) -> str:
    return f"{min(ratios):.1f}x to {max(ratios):.1f}x"


def speed() -> str:
    recorded = [read_json(path) for path in (RESULTS / f"{op}.json" for op in OPS) if path.exists()]
    where = _where([environment for environment, _ in recorded])
    memory_path, picture = RESULTS / "peak_memory.json", RESULTS / "ops.png"
    more = ""
    if memory_path.exists():
        report = json.loads(memory_path.read_text())
        _where([*(environment for environment, _ in recorded), report["environment"]])
        more += "\n" + memory(report["rows"])
        (covered,) = [rows for _, rows in recorded if rows[0].op == "cover_tokens"]
        more += "\n" + covering(covered, report["rows"])
    if picture.exists():
        text = "Every case: times faster than the best baseline computing the same"
        more += f"\n![{text}](../{picture.relative_to(ROOT).as_posix()})\n"
    more += "\n" + slower(row for _, rows in recorded for row in rows)
    return (
        f"**The ops on a CPU** ({where}). Medians; what is compared was taken in one run; ratio: "
        "the best baseline that computes the same over ours; floor: the time in which this machine "
        "can at best move the bytes or do the multiply-adds.\n\n"
        + speed_table(row for _, rows in recorded for row in rows)
        + more
    )


def busy() -> str:
    """The ops with a busy process on each core."""
    if not busy_machine.RECORDED.exists():
        return ""
    content = json.loads(busy_machine.RECORDED.read_text())
    rows = [busy_machine.BusyRow(**row) for row in content["rows"]]
    return (
        f"\n**The ops on a busy machine** ({_where([content['environment']])}): idle, and with a "
        "busy process on each core. A thread that is called may not run there for milliseconds, so "
        "an op calls no others for a while once they have come late. Means of 400 calls. Ratio: "
        "all threads over one, where the machine is busy.\n\n" + busy_machine.table(rows)
    )


def prefill() -> str:
    """The whole models that have been measured. Each file may be from a machine of its own."""
    paths = [RESULTS / name for name in RECORDED.values()]
    recorded = [json.loads(path.read_text()) for path in paths if path.exists()]
    texts = (whole_model(content, _where([content["environment"]])) for content in recorded)
    return "\n" + EXPLANATION + "\n".join(texts) if recorded else ""


def batches() -> str:
    """``clasp batch`` beside a loop written by hand."""
    content = json.loads(batch.RECORDED.read_text())
    rows = [batch.BatchRow(**row) for row in content["rows"]]
    rounds = {1: "one run of each"}.get(rows[0].rounds, f"medians of {rows[0].rounds} runs")
    return (
        f"\n**`clasp batch`** ({_where([content['environment']])}): {rows[0].images:,} pictures "
        "with questions of four kinds, answered by the bundled model with a quarter of its visual "
        "tokens, from the start of the command to its end; "
        f"{rounds}, a thread for each process. *Same answers*: the share that is equal to the "
        "first row's, since sums differ by float noise with who shares a batch. Memory is that of "
        "all processes together.\n\n" + batch.as_table(rows)
    )


def tables() -> str:
    """Everything between the markers of docs/results.md."""
    accuracy = json.loads((RESULTS / "tiny_vlm_accuracy.json").read_text())
    stages = json.loads((RESULTS / "tiny_vlm_stages.json").read_text())
    seeing = accuracy["accuracy"]["image"]["overall"]
    blind = max(v["overall"] for name, v in accuracy["accuracy"].items() if name != "image")
    return (
        f"**Accuracy of the bundled model** on {accuracy['questions']} held-out questions: "
        f"{seeing:.3f} with all 144 visual tokens; {blind:.3f} is the most any guess gets that "
        "does not see them. With fewer tokens: [what each part buys](quality.md).\n"
        + f"\n**Inside the decoder**, {stages['questions']} questions, the number of tokens "
        "being the mean over its 6 layers. `0:65,2:30,4:13` keeps 65 before the LLM, 30 "
        "once 2 layers have run, 13 once 4 have; scored by the prompt's last token or by the whole "
        "instruction, completed by hidden states or by fused vision features.\n\n"
        + stages_table(stages)
        + "\n"
        + speed()
        + busy()
        + prefill()
        + batches()
    )


def quality() -> str:
    """Everything between the markers of docs/quality.md."""
    picture = (QUALITY / "quality.png").relative_to(ROOT).as_posix()
    return page(_quality_report(), read_times(QUALITY), f"../{picture}")


def _quality_report() -> dict[str, Any]:
    report: dict[str, Any] = json.loads((QUALITY / "rows.json").read_text())
    return report


def at_scale() -> str:
    """Everything between the markers of docs/at-scale.md."""
    return serving_simulation.tables(json.loads((RESULTS / "serving_simulation.json").read_text()))


def summary() -> str:
    """The README's table, of whole models, ops and the bundled model's accuracy, and a paragraph on
    that accuracy."""
    lines = []
    for name in RECORDED.values():
        if not (RESULTS / name).exists():
            continue
        content = json.loads((RESULTS / name).read_text())
        rows = [row for row in content["rows"] if not row["ideal"]]
        for number in sorted({row["batch"] for row in rows}):
            mine = [row for row in rows if row["batch"] == number]
            every = next(row for row in mine if row["method"] == "unpruned")
            least = min(row["budget"] for row in mine)
            ours = next(row for row in mine if (row["method"], row["budget"]) == ("input", least))
            lines.append(
                [
                    f"first token, {content['environment']['parameters'] / 1e6:.0f} M parameters, "
                    f"batch {number}: {least} of {every['budget']} tokens",
                    duration(1e6 * every["first_token"]),
                    duration(1e6 * ours["first_token"]),
                    f"{every['first_token'] / ours['first_token']:.1f}x",
                ]
            )
    for op, case in FRONT.items():
        _, recorded = read_json(RESULTS / f"{op}.json")
        implementations = by_case(recorded)[op, case]
        best = min(
            row.median_us for row in implementations.values() if row.kind in (EAGER, COMPILED)
        )
        ours = implementations[OURS]
        ratio = _times(ours.speedup_over_best_baseline)
        lines.append([f"`{op}` {case}", duration(best), duration(ours.median_us), ratio])
    report = _quality_report()
    measured = report["mean"]["rows"]
    accuracies = {(row["row"], row["tokens"]): row["accuracy"][0] for row in measured}
    counting = len(report["mean"]["fitness"]["cells"])
    for kept in (48, 16):
        lines.append(
            [
                f"accuracy of the bundled model, on the {counting} kinds of questions that count: "
                f"{kept} of 144 tokens (random ones: {accuracies['random', kept]:.3f})",
                f"{accuracies['all tokens', 144]:.3f}",
                f"{accuracies['full', kept]:.3f}",
                "",
            ]
        )
    header = ["on a CPU with 2 threads", "all tokens, or the best baseline", "ours", "ratio"]
    return markdown_table(header, lines) + "\n" + textwrap.fill(in_short(report), 110) + "\n"


def main() -> None:
    for path, text in (
        (PAGE, tables()),
        (QUALITY_PAGE, quality()),
        (AT_SCALE_PAGE, at_scale()),
        (README, summary()),
    ):
        before, _, rest = path.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        path.write_text(f"{before}{BEGIN}{text}{END}{after}")


if __name__ == "__main__":
    main()
