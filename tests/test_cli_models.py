"""Errors of ``--model`` for models that are missing, damaged or have a wrong processor."""

import os
import time

import pytest
import torch
from running import QUESTION, SCENE, clasp, message, variant
from safetensors.torch import load_file, save_file

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.cli import checkpoint, report
from clasp_kernels.cli.comparison import compare
from clasp_kernels.cli.errors import CommandError, refusing_as
from clasp_kernels.cli.loading import load_image, load_model


def asking(model):
    """Do what ``clasp ask`` does, without the command line."""
    return compare(load_model(str(model), "cpu"), load_image(SCENE), QUESTION, keep=16)


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        ("", 2, "--model must name a folder or a Hugging Face id, got an empty argument"),
        ("./nothing", 2, "--model: there is no folder ./nothing"),
        ("/nothing/here", 2, "--model: there is no folder /nothing/here"),
        ("a/b/c", 2, "--model: there is no folder a/b/c"),
        ("two words", 2, "--model: there is no folder two words"),
        ("https://huggingface.co/a/b", 2, "not a URL, got https://huggingface.co/a/b"),
        (SCENE, 2, f"--model {SCENE} is a file; give the folder that holds the config.json"),
        ("/dev/null", 2, "--model /dev/null is a file"),
        (os.fsdecode(b"caf\xe9"), 2, r"--model must be valid UTF-8"),
    ],
)
def test_a_name_that_is_no_model(model, code, said):
    result = clasp("ask", SCENE, QUESTION, "--model", model)
    assert result.exit_code == code
    assert said in message(result)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CommandError, match=r"the folder holds no config\.json"):
        load_model(str(tmp_path), "cpu")


@pytest.fixture
def unreachable(monkeypatch):
    """Make the hub unreachable; return the list of requested URLs."""
    asked = []

    def fail(url, **_):
        asked.append(url)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    return asked


def test_without_a_network_the_hub_is_asked_once(unreachable):
    started = time.perf_counter()
    with pytest.raises(CommandError) as error:
        load_model("nope/none", "cpu")
    assert time.perf_counter() - started < 10
    assert str(error.value) == (
        "--model nope/none cannot be loaded as an image-text model: it is neither a local "
        "folder nor in the cache, and the hub cannot be reached (Name or service not known)"
    )
    assert len(unreachable) == 1


def test_what_is_in_the_cache_is_used_without_a_network(unreachable, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "cached/config.json")
    assert checkpoint.find_checkpoint("some/model").local_only


def test_offline_the_hub_is_not_asked(unreachable, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CommandError, match=r"HF_HUB_OFFLINE or .* forbids asking the hub"):
        load_model("nope/none", "cpu")
    assert unreachable == []


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({"num_additional_image_tokens": 0}, 143),
        ({"num_additional_image_tokens": 3}, 146),
        ({"vision_feature_select_strategy": "full"}, 145),
        ({"patch_size": 16}, 36),
    ],
)
def test_a_processor_that_makes_another_number_of_tokens(tmp_path, changes, made):
    model = variant(tmp_path, "processor_config.json", changes)
    with pytest.raises(CommandError) as error:
        asking(model)
    assert str(error.value) == (
        f"the processor of {model} makes {made} image tokens of this image, the model 144: check "
        f"patch_size, num_additional_image_tokens and vision_feature_select_strategy in "
        f"processor_config.json"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_size": None}, "check patch_size and the image processor .*: TypeError: unsup"),
        ({"patch_size": 0}, "check patch_size and the image processor .*: integer division"),
        ({"image_processor": {"do_resize": False}}, r"pixels of shape \[1, 3, 384, 384\], .* 96 x"),
        ({"image_processor": {"size": {"height": 48, "width": 48}}}, "makes pixels of shape"),
        ({"image_processor": {"image_mean": [0.5]}}, "cannot prepare .* must have 3 elements"),
        ({"image_processor": {"image_std": [0, 0, 0]}}, "makes pixels that are not finite"),
        ({"image_processor": {"image_processor_type": "None"}}, "cannot be loaded as an image"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_processor_that_does_not_fit(tmp_path, changes, said):
    with pytest.raises(CommandError, match=said) as error:
        asking(variant(tmp_path, "processor_config.json", changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("USER: {{ messages }} ASSISTANT:", "puts no image into the prompt: it must write '<image"),
        ("USER: <image><image> ASSISTANT:", "cannot prepare the image and the question"),
        ("{{ raise_exception('no such role') }}", "does not work: no such role"),
    ],
)
def test_a_chat_template_that_does_not_serve(tmp_path, template, said):
    model = variant(tmp_path, "config.json", {})
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(CommandError, match=said):
        asking(model)


@pytest.mark.parametrize("token", [540, -1, 99999])
def test_an_image_token_that_the_model_does_not_have(tmp_path, token):
    with pytest.raises(CommandError, match=f"image_token_index in its config.json is {token}, "):
        asking(variant(tmp_path, "config.json", {"image_token_index": token}))


def test_a_tokenizer_with_more_tokens_than_the_model():
    loaded = load_model(None, "cpu")
    size = loaded.model.config.text_config.vocab_size
    loaded.processor.tokenizer.add_tokens(["sign"])
    said = f"makes token {size}, the model has only {size} tokens: its"
    with pytest.raises(CommandError, match=said):
        compare(loaded, load_image(SCENE), QUESTION, keep=16)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_beams": 4},
        {"return_dict_in_generate": True, "output_scores": True},
        {"use_cache": False},
        {"stop_strings": ["zzz"]},
        {"do_sample": True, "temperature": 50.0},
    ],
)
def test_a_generation_config_that_asks_for_more_gets_one_greedy_answer(tmp_path, changes):
    model = variant(tmp_path, "generation_config.json", changes)
    answered, expected = asking(model), asking(tiny_vlm_path())
    for way in ("all_tokens", "kept_tokens"):
        assert getattr(answered, way).answer == getattr(expected, way).answer
        assert getattr(answered, way).kv_cache_bytes == getattr(expected, way).kv_cache_bytes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eos_token_id": "x"}, "cannot answer: TypeError: "),
        ({"repetition_penalty": -2}, "cannot answer: `penalty` has to be a strictly positive"),
        ({"cache_implementation": "nonsense"}, "Invalid `cache_implementation`"),
    ],
)
def test_a_generation_config_with_illegal_values(tmp_path, changes, said):
    with pytest.raises(CommandError, match=said) as error:
        asking(variant(tmp_path, "generation_config.json", changes))
    assert "\n" not in str(error.value)


def test_a_model_of_another_type_is_refused_before_its_weights_are_read(tmp_path):
    model = variant(tmp_path, "config.json", {"model_type": "bert"})
    (model / "model.safetensors").unlink()
    with pytest.raises(CommandError, match=r"its model_type must be 'llava' or .*, got 'bert'"):
        load_model(str(model), "cpu")


def test_weights_that_are_cut_short_or_missing(tmp_path):
    model = variant(tmp_path, "config.json", {})
    weights = model / "model.safetensors"
    whole = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CommandError, match="cannot be loaded as an image-text model: "):
        load_model(str(model), "cpu")
    gone = next(name for name in whole if "q_proj" in name)
    save_file({k: v for k, v in whole.items() if k != gone}, weights, metadata={"format": "pt"})
    with pytest.raises(CommandError, match="its weights lack 1 of the model's parameters, such as"):
        load_model(str(model), "cpu")
    weights.unlink()
    with pytest.raises(CommandError, match=r"cannot be loaded as an image-text model: .*no file"):
        load_model(str(model), "cpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_said(monkeypatch, error):
    loaded = load_model(None, "cpu")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(loaded.model, "generate", fail)
    with pytest.raises(CommandError, match="the bundled tiny LLaVA cannot answer: out of memory"):
        compare(loaded, load_image(SCENE), QUESTION, keep=16)


def test_a_fault_of_this_package_is_not_blamed_on_the_model():
    with pytest.raises(TypeError), refusing_as("the model cannot answer"):
        report.size("many")  # raised in this package
    said = "the model cannot answer: AttributeError: "
    with pytest.raises(CommandError, match=said), refusing_as("the model cannot answer"):
        torch.nn.functional.softmax("many")  # raised in torch
