"""The default learning rate of a method, by the width of the model; --lr overrides it.

If each entry of a matrix changes equally, the output of a wider one moves more: so rates fall.
The sources, for AdamW:

  full, last-N      3e-4 up to width 384: the small BERTs of Turc et al. 2019 were tuned with 3e-4
                    to 3e-5; 5e-5 to 2e-5 at 768 and 1024: Devlin et al. 2018 (BERT), Liu et al.
                    2019 (RoBERTa), He et al. 2021 (DeBERTa); 2e-5 to 1e-5 above: Touvron et al.
                    2023 (LLaMA 2). T5 is given 1e-4 or more, as in transformers' documentation.
  lora dora qlora   ten times that: 5e-4 on RoBERTa base and 2e-4 to 4e-4 on large in Hu et al.
                    2021, 2e-4 to 1e-4 on LLaMA in Dettmers et al. 2023 (QLoRA)
  head              3e-3 to 1e-3, as the features are fixed; 3e-3 was measured at widths 256 and 384
  houlsby pfeiffer  1e-3: Houlsby et al. 2019 tried 3e-5, 3e-4 and 3e-3
  bitfit            1e-3: Ben Zaken et al. 2021 tried 1e-4 to 1e-3
  prefix            5e-3: Liu et al. 2021 (P-tuning v2) took 5e-3 to 1e-2
  prompt            1e-2: P-tuning v2 again; PEFT's examples have 3e-2; Lester et al. 2021 took 0.3
                    with Adafactor

Label texts and heads are tuned at the same rates.
"""
from ..errors import InputError
from ..files import find_model, read_json

WIDTH_KEYS = ("hidden_size", "dim", "d_model", "n_embd")      # in config.json, by family
WIDTH_RATES = ((384, 3e-4, 3e-3), (512, 1e-4, 2e-3), (768, 3e-5, 1e-3), (1024, 2e-5, 1e-3),
               (float("inf"), 1e-5, 1e-3))             # (up to this width, full, head)
METHOD_RATES = {"houlsby": 1e-3, "pfeiffer": 1e-3, "bitfit": 1e-3, "prefix": 5e-3, "prompt": 1e-2}
T5_LOWEST_LR = 1e-4


def default_lr(s):
    """Settings -> learning rate, the reason as text. A model that cannot be read has width 0."""
    try:
        config = read_json(find_model(s.model) / "config.json")
    except InputError:
        config = {}
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    width = next((inner[key] for key in WIDTH_KEYS if type(inner.get(key)) is int), 0)
    full, head = next(rates for widest, *rates in WIDTH_RATES if width <= widest)
    if config.get("model_type") == "t5":
        full = max(full, T5_LOWEST_LR)
    ten_times = float(f"{10 * full:.6g}")               # without binary rounding: 0.0003
    updates = dict.fromkeys(("lora", "dora", "qlora"), ten_times)
    rates = {**METHOD_RATES, "head": head, **updates}
    return rates.get(s.method, full), f"{s.method} at width {width}"


def lr_text(s):
    """The learning rate of a run and why, in words."""
    usual, why = default_lr(s)
    if s.lr == usual:
        return f"learning rate {s.lr:g} ({why.replace(' at', ',')})"
    return f"learning rate {s.lr:g} ({usual:g} is usual for {why})"
