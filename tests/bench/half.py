"""The rows in bf16 of python -m tests.bench: the sides of sides.py, and ours in fp32 beside them.

  fp32       ours, as in the other rows
  ours, D, T in bf16: weights converted for answering, the forward pass under autocast for training
  ONNX fp32  ONNX Runtime, transformers' graph, batches sorted by length as T's; answering only
  ONNX int8  the same with weights in 8 bits, activations rounded as they come (quantize_dynamic)

onnxruntime and onnx are needed for the last two alone; without them the table says so. bf16 and 8
bits round, so scores are compared loosely, and the table says how far each lies from ours in fp32.
Gradients are compared in fp32, before autocast.
"""
import importlib
import logging
import warnings
from pathlib import Path

import torch

from minillmclf.cli.device import is_bf16_fast
from minillmclf.models.half import convert_to_bf16

from .cases import body
from .sides import Ours, Theirs, classes, classifier
from .timing import apart

OPTIONAL = ("onnxruntime", "onnx")
OPSET = 17


def absent():
    """What is missing for the sides of ONNX Runtime -> a sentence, or None."""
    missing = []
    for name in OPTIONAL:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if not missing:
        return None
    return f"not installed: {', '.join(missing)} (pip install {' '.join(OPTIONAL)})"


class Onnx(Theirs):
    """A graph on ONNX Runtime's CPU kernels."""

    def __init__(self, path, model):
        options = importlib.import_module("onnxruntime").SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        self.session = importlib.import_module("onnxruntime").InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"])
        # the model is not called
        self.model, self.tuned, self.pad = model, True, model.config.pad_token_id

    def scores(self, rows):
        """(B, C)."""
        ids, mask, _ = self.collate(rows)
        return torch.from_numpy(
            self.session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0])


def export(model, path):
    """Write the graph of transformers' classifier, for any number of rows and tokens."""
    ids = torch.randint(5, 100, (2, 7))
    axes = {0: "rows", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (ids, torch.ones_like(ids)), str(path),
                          dynamo=False, opset_version=OPSET,
                          input_names=["input_ids", "attention_mask"], output_names=["logits"],
                          dynamic_axes={"input_ids": axes, "attention_mask": axes})


def onnx_sides(model, place):
    """{"ONNX fp32", "ONNX int8"} of a classifier of transformers in fp32."""
    quantization = importlib.import_module("onnxruntime.quantization")
    plain, rounded = place / "plain.onnx", place / "int8.onnx"
    export(model, plain)
    logging.disable(logging.WARNING)  # it advises to prepare the graph first
    try:
        quantization.quantize_dynamic(plain, rounded, weight_type=quantization.QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)
    return {"ONNX fp32": Onnx(plain, model), "ONNX int8": Onnx(rounded, model)}


def about(sides, way):
    """What a record of bf16 holds besides: how far the scores of each side lie from ours in fp32,
    in parts of the largest; is bf16 fast on this machine; why sides of ONNX Runtime are missing."""
    answers = {name: getattr(side, way)() for name, side in sides.items()}
    return {"apart": {name: apart(answer, answers["fp32"]) for name, answer in answers.items()},
            "fast": is_bf16_fast(torch.device("cpu")),
            "absent": absent() if way == "infer" else None}


def in_bf16(hf, case, place):
    """The sides of a case in bf16."""
    found = classes(hf, case, place)
    found = {"ours": found["ours"],
             "fp32": Ours(classifier(case, body(place, case.model, case.layers, case.width))),
             "D": found["D"], "T": found["T"]}
    if case.work == "train":
        for name in ("ours", "D", "T"):
            found[name].precision = "bf16"
        return found
    if absent() is None:
        found |= onnx_sides(found["T"].model, Path(place))
    convert_to_bf16(found["ours"].model.backbone)
    for name in "DT":
        found[name].model.to(torch.bfloat16)
    return found
