"""What python -m minillmclf.choose prints: the facts, and the advice that follows from them."""
import json
import textwrap

from ..cli.checks import refuse_multi_label
from ..cli.memory import size_text
from ..cli.rows import load_dataset
from ..cli.settings import read_settings
from ..files import find_model
from ..text.doctor import unknown_warning
from .advice import FEW_CUT_SHARE, RULE_OF_THUMB, UNBALANCED, advise, command_of
from .facts import USABLE, all_model_facts, data_facts, machine_facts, rows_at_once
from .measured import comparison_facts

WIDTH = 120
LENGTHS_LINE = "  {:28} {:16} {:>8} {:>8} {:>9} {:>7}   {}"
MEMORY_LINE = "  {:28} {:10} {:>13} {:>22} {:>12}   {}"


def choose(a, given):
    """Run the command. a: its flags; given: {name: value} of those of Settings -> exit code."""
    refuse_multi_label(read_settings(given), "choose")
    s = read_settings({**given, "readout": "labels"})           # labels: any number of texts a row
    for name in a.models or ():
        find_model(name)
    data, machine = load_dataset(s), machine_facts()
    comparison = comparison_facts(a.comparison, data)
    models, left_out = all_model_facts(a.models, data, s, machine)
    facts = {"purpose": a.purpose, "asked": given, "rows_at_once": rows_at_once(s),
             "data": data_facts(data), "machine": machine, "models": models, "left_out": left_out,
             "comparison": comparison}
    flags, why = advise(facts)
    flags |= {"data": s.data} | {key: value for key, value in given.items() if key not in flags}
    command = command_of(flags)
    if a.json:
        facts["advice"] = {"flags": flags, "why": why, "command": command}
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    left_out = [f"  {line}"[:WIDTH] for line in left_out]
    parts = [[RULE_OF_THUMB], data_lines(facts["data"], models) + left_out, machine_lines(facts),
             comparison_lines(comparison),
             ["start with: " + command, f"  because {'; '.join(why)}"]]
    print("\n\n".join("\n".join(part) for part in parts))
    return 0


def data_lines(data, models):
    """Rows, classes and lengths -> lines."""
    rows, classes = data["rows"], len(data["labels"])
    texts = {1: "one text a row", 2: "a pair of texts a row"}.get(data["texts"],
                                                                  f"{data['texts']} texts a row")
    if data["preference"]:
        texts = "a preference triple a row"
    remedy = ": --class-weights balanced" if data["imbalance"] > UNBALANCED else ""
    lines = ["what the data say",
             f"  {sum(rows.values()):,} rows ({rows['train']:,} train, {rows['dev']:,} dev, "
             f"{rows['test']:,} test), {texts}, {classes} classes",
             f"  the rarest class, {data['rarest']!r:.40}, has {data['rarest_rows']:,} train rows, "
             f"the largest {data['imbalance']:.1f} times as many{remedy}",
             *(f"  WARNING: {line}" for line in data["warnings"]),
             LENGTHS_LINE.format("tokens", "kind", "median", "95 %", "it takes", "longer",
                                 "classes x tokens of a label text")]
    for m in models:
        numbers = [f"{m[key]:,}" for key in ("median", "p95", "limit")]
        lines.append(LENGTHS_LINE.format(
            m["name"][-28:], m["kind"], *numbers, f"{m['over']:.1%}",
            f"{classes} x {m['label_tokens'] / classes:.1f} = {m['label_tokens']}"))
    for m in models:
        lines += [f"  {m['name'][-28:]}: {line}" for line in unknown_warning(m["unknown"])]
    if any(m["over"] > FEW_CUT_SHARE for m in models):
        lines.append("  longer texts are cut: --windows mean reads them whole, "
                     "--truncation-side middle keeps both ends")
    return lines


def size_or_not_known(count):
    return "not known" if count is None else size_text(count)


def machine_lines(facts):
    """Cores and memory, and what each method needs for each model -> lines."""
    machine, memory, card = facts["machine"], facts["machine"]["memory"], "no GPU"
    if gpu := machine["gpu"]:
        card = f"GPU {gpu['name']}, free {size_text(gpu['free'])} of {size_text(gpu['total'])}"
    lines = ["what this machine says",
             f"  {machine['cores']} cores; memory {size_or_not_known(memory['total'])}, free "
             f"{size_or_not_known(memory['free'])}; {card}",
             f"  to train in fp32 with AdamW, {facts['rows_at_once']} texts at a time (NO: takes "
             f"more than {USABLE:.0%} of what is free)",
             MEMORY_LINE.format("model", "method", "tokens a text", "trainable parameters",
                                "memory", "fits")]
    for m in facts["models"]:
        for method in m["methods"]:
            start = [m["name"][-28:], method["method"], f"{m['length']:,}"]
            if "reason" in method:
                why = textwrap.shorten(method["reason"], WIDTH - 56, placeholder=" ...")
                lines.append("  {:28} {:10} {:>13} {}".format(*start, why))
                continue
            fits = {True: "yes", False: "NO", None: "not known"}[method["fits"]]
            needed = "> " * method["at_least"] + size_text(method["bytes"])
            lines.append(MEMORY_LINE.format(*start, f"{method['trainable']:,}", needed, fits))
    return lines


def comparison_lines(comparison):
    """The best, cheapest and fastest rows of a comparison -> lines."""
    if not comparison:
        return ["no comparison of these data in runs/: python -m minillmclf.compare measures"]
    best = comparison["best"]
    metric = f"{best['split']} {best['metric'].replace('_', ' ')}"
    lines = [f"what {comparison['folder']} has measured (chosen by dev; {metric} with its "
             "interval, and dev)"]
    names = {"best": "best on dev:", "cheapest": "shortest training near the best:",
             "fastest": "fastest:"}
    for key, name in names.items():
        if row := comparison[key]:
            score, costs = row["score"], [f"dev {row['dev']:.3f}"]
            if row["train_seconds"] is not None:
                costs.append(f"trained in {row['train_seconds']:,.0f} s")
            if row["ms_per_text"] is not None:
                costs.append(f"{row['ms_per_text']:.2f} ms a text")
            lines += [f"  {name:34} {' '.join(filter(None, [row['label'], row['settings']]))}",
                      f"  {'':34} {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}], "
                      + ", ".join(costs)]
    return lines
