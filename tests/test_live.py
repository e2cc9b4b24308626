"""Does a comparison with a library skip what the library refuses, and only that?"""
import importlib

import live
import pytest
from conftest import MODELS
from live import PACKAGE, claimed, imported, loaded, may_refuse, tokenizer_of

from minillmclf.models import load_backbone
from minillmclf.models.layers import Rows
from minillmclf.models.tensor_files import write_checkpoint

WORDS = "Model does not support past key values which is a requirement for prefix tuning."


def skipped(call):
    """The reason of the skip that `call` must end in."""
    with pytest.raises(pytest.skip.Exception) as caught:
        call()
    return str(caught.value)


def within(path, line="call()"):
    """A function of a file at `path` that only calls what it is given."""
    names = {}
    exec(compile(f"def function(call):\n    {line}", str(path), "exec"), names)
    return names["function"]


def refuse():
    raise ValueError(WORDS + "\n  (more)")


def inside(call, control=None):
    with may_refuse(control):
        call()


library, package = within("/site-packages/peft/peft_model.py"), within(PACKAGE / "any.py")


@pytest.mark.parametrize("call", [
    pytest.param(refuse, id="in the test"),
    pytest.param(lambda: library(refuse), id="in the library"),
    pytest.param(lambda: package(lambda: library(refuse)), id="there, called by us"),
    pytest.param(lambda: importlib.import_module("peft.no_such_module"), id="not there"),
    pytest.param(lambda: object().gone, id="taken away"),
    pytest.param(lambda: dict(1, 2, 3), id="other arguments")])
def test_what_the_reference_refuses_is_a_skip_with_its_words(call):
    reason = skipped(lambda: inside(call))
    assert reason.startswith("the reference refuses: ") and "\n" not in reason
    assert call is not refuse or WORDS in reason and "ValueError" in reason


def assert_wrong():
    assert 1 == 2, "we differ"


def wrapped():
    """As a library does that catches what our code raised, and raises something of its own."""
    try:
        package(refuse)
    except ValueError as error:
        raise RuntimeError("something went wrong") from error


@pytest.mark.parametrize("call, kind", [
    (assert_wrong, AssertionError), (lambda: library(assert_wrong), AssertionError),
    (lambda: Rows(None), AttributeError), (lambda: package(refuse), ValueError),
    (lambda: library(lambda: package(refuse)), ValueError), (wrapped, RuntimeError),
    (lambda: no_such_name, NameError),  # noqa: F821
    (lambda: load_backbone(MODELS), Exception)])
def test_a_fault_of_ours_is_none(call, kind):
    for control in (None, refuse):
        with pytest.raises(kind):
            inside(call, control)


def test_what_is_read_of_ours_must_be_refused_for_its_own_too():
    assert WORDS in skipped(lambda: inside(refuse, control=refuse))
    asked = []
    with pytest.raises(ValueError, match="Model does not support"):     # it takes its own, not ours
        inside(refuse, control=lambda: asked.append("control"))
    assert asked == ["control"]
    inside(lambda: None, control=refuse)                          # not refused: no control is asked


def test_a_folder_of_ours_that_transformers_cannot_read_is_our_fault(tmp_path):
    transformers = imported("transformers")
    load = transformers.BertForMaskedLM.from_pretrained
    model = load_backbone(MODELS / "bert_masked_lm")
    write_checkpoint(tmp_path, model.source_config, {})
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(Exception, match="(?i)header|safetensors|deserializ"):
        loaded(load, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(Exception):
        tokenizer_of(tmp_path, "BertTokenizer")

    def gone(folder, **given):
        raise NotImplementedError("no longer here")
    assert "no longer here" in skipped(lambda: loaded(gone, tmp_path))


def test_another_version_than_the_claimed_is_a_skip(monkeypatch):
    imported("tokenizers")                                    # or a skip, where it is not installed
    for version, taken in (("0.23.1", True), ("0.23.9rc1", True), ("0.24.0", False),
                           ("1.0.0", False), ("0.22.2", False)):
        monkeypatch.setattr(live.metadata, "version", lambda name, version=version: version)
        if taken:
            assert imported("tokenizers").__name__ == "tokenizers"
        else:
            reason = skipped(lambda: imported("tokenizers"))
            wanted = f"tokenizers{claimed()['tokenizers']}"
            assert reason == f"tokenizers {version} is installed, the comparison is with {wanted}"
    assert "no_such_part" in skipped(lambda: imported("tokenizers.no_such_part"))


def test_the_versions_that_are_compared_with_have_upper_bounds():
    assert set(claimed()) == set(live.LIBRARIES)
    for name, versions in claimed().items():
        assert {"<", ">="} == {bound.operator for bound in versions}, (
            f"{name}{versions}: the newest would be installed")
