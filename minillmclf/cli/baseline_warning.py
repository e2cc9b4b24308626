"""A warning about a finished run that is no better than its baselines, with what to try next."""
from ..training.metrics import improvement
from ..training.rates import default_lr
from ..tuning.quant_files import has_four_bits
from .settings import Settings

CONSTANT = ("majority class", "class frequencies")     # baselines that do not read the text


def baseline_warning(record):
    """record: run.json of a finished run -> [a line]; [] if the run is good enough, that is better
    than the constant baselines and at least as good as the others.
    """
    s, results = Settings(**record["settings"]), record["results"]
    *baselines, own = results
    metric = s.metric
    if metric == "ece":                                # ECE does not count right answers
        metric = "micro_f1" if s.multi_label == "on" else "accuracy"
    lost = []
    for name in baselines:
        gained = improvement(metric, results[own], results[name])
        if gained < 0 or gained == 0 and name in CONSTANT:
            lost.append(name)
    if not lost:
        return []
    usual, why = default_lr(s)
    tries = [                                          # (does it apply?, what to try)
        (s.weights == "random", "--weights pretrained"),
        (s.lr == usual, f"another --lr ({3 * usual:.2g} or {usual / 3:.2g}; "
                        f"the usual is {usual:g})"),
        (s.lr != usual, f"--lr {usual:g}, the usual one of {why}"),
        (record["best_epoch"] >= s.epochs, f"--epochs {2 * s.epochs}, for the last was the best"),
        (s.method != "full" and not has_four_bits(s.model), "--method full"),
        (True, "another --model (python -m minillmclf.choose looks at the data)")]
    numbers = ", ".join(f"{name} {results[name][metric]:.3f}" for name in lost)
    score = f"{record['split']} {metric.replace('_', ' ')} {results[own][metric]:.3f}"
    advice = "; ".join(text for applies, text in tries if applies)
    return [f"WARNING: {score} is not better than {numbers}: try {advice}"]
