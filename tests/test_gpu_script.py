"""Does tests/reference/gpu.py run, and is what it would measure the same computation? Nothing here
shows anything of a GPU."""
import importlib.util
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from live import imported, may_refuse
from small import forked
from test_families import folders  # noqa: F401  a fixture

from minillmclf.classify.classifier import Classifier

TEXTS = ["a rose", "the red rose is a rose is a rose", "blue", "a blue rose, and a red one"]


@pytest.fixture(scope="module")
def gpu():
    path = Path(__file__).parent / "reference" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_script", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_script_runs_without_a_gpu_and_says_what_that_proves(gpu, tmp_path, capsys,
                                                                 monkeypatch):
    """Whole runs are forks of a process that has torch; the run that is stopped is a real one."""
    def run(command, **_):
        done = forked(command[2].partition(".")[2], command[3:])
        return SimpleNamespace(**dict(zip(("returncode", "stdout", "stderr"), done)))
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(**vars(subprocess) | {"run": run}))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):     # as in the forks: the same sums
        monkeypatch.setenv(name, "1")
    result = gpu.main([
        "--tiny", "--device", "cpu", "--parts", "job", "resume", "packed", "--out", str(tmp_path)])
    lines = [line for found in result["parts"].values() for line in found]
    assert len(lines) == 4 and not [line for line in lines if "failed" in line], lines
    assert lines[1] == {"what": "resume", "largest difference of a weight": 0.0}
    assert all(line["tokens a second"] > 0 and line["GB at most"] is None for line in lines[2:])
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert gpu.NO_GPU in text
    assert "| packed | lora, here, attention on packed tokens | tokens a second" in text
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8")) == result
    assert text in capsys.readouterr().out


def test_steps_of_a_large_model_are_taken_here_and_there(gpu):
    for name in ("transformers", "peft", "bitsandbytes"):
        imported(name)
    with may_refuse():
        result = gpu.main(["--tiny", "--device", "cpu", "--parts", "large"])
    lines = result["parts"]["large"]
    assert [line["what"] for line in lines] == [
        f"{method}, {side}" for method in ("lora", "qlora")
        for side in ("here", "transformers + PEFT", "transformers + PEFT, weights in bf16")]
    assert not [line for line in lines if "failed" in line], lines


def test_a_part_that_fails_or_comes_too_late_is_a_line(gpu, monkeypatch):
    def fail(a, place):
        raise RuntimeError("no kernel image\nfor this device")
    monkeypatch.setitem(gpu.PARTS, "job", fail)
    result = gpu.main(["--tiny", "--device", "cpu", "--parts", "job"])
    assert result["parts"] == {"job": [{"failed": "RuntimeError: no kernel image"}]}
    assert "| job |  | failed RuntimeError: no kernel image |" in gpu.markdown(result)
    late = gpu.main(["--tiny", "--device", "cpu", "--parts", "job", "--minutes", "-1"])
    assert late["parts"]["job"] == [{"failed": "left out: the minutes were over"}]


def test_a_table_of_a_gpu_does_not_say_that_there_was_none(gpu):
    about = {"device": "H200", "torch": "2", "cuda": "13", "capability": [9, 0]}
    assert gpu.NO_GPU not in gpu.markdown({"machine": about, "parts": {}})


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_how_to_try_the_script(gpu, capsys):
    with pytest.raises(SystemExit) as end:
        gpu.main([])
    assert end.value.code == 2 and "--tiny --device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bert", "llama", "mistral"])
def test_attention_on_packed_tokens_is_that_on_padded_rows(name, gpu, folders):  # noqa: F811
    model = Classifier.from_backbone(folders[name], ["a", "b"], seed=0).double().eval()
    batch = model.collate(model.encode(TEXTS)[0], range(len(TEXTS)))
    calls = []

    def kernel(*given, **options):
        calls.append(options)
        return gpu.varlen_by_hand(*given, **options)
    plain = model.backbone(batch.ids, batch.mask)
    with gpu.packed_attention(kernel), torch.no_grad():
        found = model.backbone(batch.ids, batch.mask)
    assert len(calls) == len(model.backbone.layers), "every block should be asked for"
    assert (found - plain).abs().max() < 1e-12
    with gpu.packed_attention(
            lambda *given, **options: kernel(*given, **options | {"window_size": (0, 0)})):
        assert (model.backbone(batch.ids, batch.mask) - plain).abs().max() > 1e-6, (
            "another window should be seen")
    assert torch.equal(model.backbone(batch.ids, batch.mask), plain), "it should be detached again"
