"""table.md of python -m tests.bench: table.json as Markdown, and what the numbers depend on."""
import os
import platform
import statistics
import subprocess
from importlib import metadata
from pathlib import Path

from minillmclf.cli.tables import markdown_table

from .timing import SQUARE, costs, paired, used

LIBRARIES = ("transformers", "peft", "tokenizers", "accelerate", "bitsandbytes")
SEEDS, ENOUGH = 3, 9  # data seeds, and rounds, that a table should rest on


def version_or_none(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine(threads):
    """What the numbers depend on besides the code."""
    import torch
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        told = [line.partition(":")[2].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        processor = told[0] if told else processor
    return {"processor": processor, "cores": os.cpu_count(), "threads": threads,
            "system": platform.platform(), "python": platform.python_version(),
            "torch": torch.__version__, **{name: metadata.version(name) for name in LIBRARIES},
            "onnxruntime": version_or_none("onnxruntime")}


def commit():
    """The git commit of this package's checkout, + if files differ from it; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    try:
        head, changed = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "minillmclf")))
    except OSError:
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + "+" * bool(changed.stdout.strip())


def times(ratio):
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def headline(record):
    """One line of the main table."""
    sides = record["sides"]
    cost = statistics.median(1e6 * cost["ours"] for cost in costs(record))
    faster = {name: paired(record, name, "ours") for name in sides if name != "ours"}
    shares = [used(record, name) for name in ("ours", record["twin"])]
    aims = ["" if aim is None else f"{aim:g}" for aim in record["aims"]]
    return [f"{record['row']}: {record['name']}", f"{cost:.0f}",
            *(times(faster[name]) if name in faster else "" for name in "DT"), *aims,
            times(paired(record, "again", record["twin"])),
            *("" if share is None else f"{100 * share:.0f} %" for share in shares),
            "**void**" if record["faults"] else ""]


def markdown(table):
    """table.md from what table.json holds -> str."""
    made, rows = table["made_from"], table["rows"]
    about, lines = made["machine"], ["# Speed beside transformers and PEFT", ""]
    versions = ", ".join(f"{name} {about[name]}"
                         for name in ("torch", *LIBRARIES, "onnxruntime") if about.get(name))
    lines.append(f"{about['processor']}, {about['cores']} cores, **{about['threads']} threads**; "
                 f"{versions}; commit {table['commit'] or 'unknown'}, {table['date']}.")
    if made["quick"]:
        lines.append("\n**This is a quick run**: 2 layers, half the rows of a batch. Its ratios "
                     "are no results.")
    count = made["seeds"] * made["rounds"]
    if count < ENOUGH or made["seeds"] < SEEDS:
        lines.append(f"\n**Only {count} rounds and {made['seeds']} data seeds**: {ENOUGH} and "
                     f"{SEEDS} are wanted.")
    broken = [f"- {record['row']}, {record['name']}: {fault}" for record in rows.values()
              for fault in record.get("faults", [])]
    if broken:
        lines += ["", "**This run is void**; the same command measures these lines again:", "",
                  *broken]
    unit = {"tokens": [], "texts": []}
    for record in rows.values():
        if "rounds" in record and "sides" in record and record.get("precision", "fp32") == "fp32":
            unit[record["unit"]].append(headline(record))
    for name, found in unit.items():
        if found:
            head = ["work", f"ours, µs a {'real token' if name == 'tokens' else 'text'}",
                    "D / ours", "T / ours", "aim D", "aim T",
                    "reference / itself", "ours of sgemm", "reference of sgemm", ""]
            lines += ["", f"## {'Models' if name == 'tokens' else 'Tokenizers'}", "",
                      *markdown_table(head, found)]
    return "\n".join(lines + halves(rows) + others(rows) + notes(rows)) + "\n"


BESIDE = ("fp32", "D", "T", "ONNX fp32", "ONNX int8")  # the sides beside ours in a row in bf16


def halves(rows):
    """The table of the rows in bf16."""
    records = [record for record in rows.values() if record.get("precision") == "bf16"]
    if not records:
        return []
    found = []
    for record in records:
        cost = statistics.median(1e6 * cost["ours"] for cost in costs(record))
        distance = [f"{name} {record['apart'][name]:.2g}"
                    for name in record["sides"] if name != "fp32"]
        beside = [times(paired(record, name, "ours")) if name in record["sides"] else ""
                  for name in BESIDE]
        found.append([record["name"], f"{cost:.0f}", *beside,
                      times(paired(record, "again", record["twin"])),
                      ", ".join(distance), "**void**" if record["faults"] else ""])
    head = ["work", "ours in bf16, µs a real token",
            *(f"{name} / ours" for name in ("ours in fp32", *BESIDE[1:])), "reference / itself",
            "scores from ours in fp32, in parts of the largest", ""]
    lines = ["", "## In bf16", "", *markdown_table(head, found), "",
             "BERT on the lengths of SST-2. ours, D, T: in bf16; ONNX: ONNX Runtime on "
             "transformers' model, in batches as T's. Scores differ by rounding; gradients were "
             "equal before autocast."]
    if not all(record["fast"] for record in records):
        lines.append("**This machine is not fast at bf16** (neither AMX nor AVX512-BF16): bf16 is "
                     "no gain here.")
    missing = {record["absent"] for record in records if record["absent"]}
    return lines + [f"Without ONNX Runtime: {reason}." for reason in sorted(missing)]


def others(rows):
    """The tables of what was not measured by turns."""
    lines = []
    if rows.get("memory", {}).get("lines"):
        lines += ["", "## Peak memory of two training steps, 12 x 768, 8 x 128 tokens", "",
                  *markdown_table(["method", "ours, MB", "transformers + PEFT, MB", "ratio"], [
                      [x["method"], f"{x['ours']:.0f}", f"{x['theirs']:.0f}",
                       f"{x['ours'] / x['theirs']:.2f}"] for x in rows["memory"]["lines"]])]
    if "start" in rows:
        found = {name: [seconds[name] for seconds in rows["start"]["rounds"]]
                 for name in rows["start"]["rounds"][0]}
        lines += ["", "## Start, in fresh processes", "", *markdown_table(["command", "seconds"], [
            [name, times({"median": statistics.median(s), "low": min(s), "high": max(s)})]
            for name, s in found.items()])]
    if "scaling" in rows:
        lines += ["", "## Scaling (scaling.svg), LLaMA's wiring, 2 x 256, prediction", "",
                  *markdown_table(
                      ["axis", "value", "ours, ms", "transformers tuned, ms", "ratio"],
                      [[p["axis"], p["value"], f"{1000 * p['ours']:.1f}", f"{1000 * p['T']:.1f}",
                        f"{p['T'] / p['ours']:.2f}"] for p in rows["scaling"]["points"]])]
    return lines


def notes(rows):
    """What the numbers mean, in the file itself: it is read without this one."""
    text = (
        "D: transformers and PEFT as users run them; T: the same with length buckets, fused AdamW "
        "and, for one label token, the language-model head at one place. Label scoring: D reads "
        "each (prompt, label) pair, T the prompt once with a cache. Ratios: of seconds a real "
        "token (padding does not count), the median of the rounds' own (least-greatest); above 1 "
        "ours is faster; 0.9 to 1.1 shows no difference. Laying out batches is timed for all. "
        "Dropout 0. Before timing, logits and (in training) gradients were equal on the same rows. "
        "Of sgemm: executed FLOPs a second against those of a large matrix product.")
    speeds = [2e-9 * SQUARE**3 / seconds["sgemm"] for record in rows.values()
              if "sides" in record and record.get("precision", "fp32") == "fp32"
              for seconds in record["rounds"]]
    if speeds:
        text += (f" sgemm ({SQUARE} x {SQUARE}) in the same rounds: "
                 f"{statistics.median(speeds):.0f} GF/s ({min(speeds):.0f}-{max(speeds):.0f}).")
    return ["", text]
