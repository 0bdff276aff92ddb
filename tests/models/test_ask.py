"""``clasp ask`` with a model of every family and its own processor, loaded from a folder."""

import json
import shutil
import sys
from functools import cache

import numpy as np
import pytest
from PIL import Image
from processors import PROCESSORS
from running import SCENE, clasp, message
from transformers.utils.import_utils import is_torchvision_available

from clasp_kernels.cli import loading
from clasp_kernels.cli.comparison import compare
from clasp_kernels.cli.errors import CommandError, UsageError
from clasp_kernels.cli.loading import LoadedModel, load_image, load_model
from clasp_kernels.cli.picture import beside_each_other, overlay
from clasp_kernels.cli.processor import load_processor
from clasp_kernels.cli.prompt import prepare
from clasp_kernels.models import apply_clasp
from clasp_kernels.models.decoder import refusal
from clasp_kernels.policy import Schedule
from clasp_kernels.visualize import COMPLETION_COLOR, PIVOT_COLOR

QUESTION = "what is in the picture"
#: Images that the wide scene makes, of each of which as many tokens are kept; 1 in other families.
IMAGES = {"idefics3": 3, "smolvlm": 3}


@pytest.fixture(autouse=True)
def one_run(monkeypatch):
    monkeypatch.setattr("clasp_kernels.cli.comparison._MAX_RUNS", 1)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Return the path of a bundled scene, resized to 300 x 100 pixels."""
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    with Image.open(SCENE) as scene:
        scene.convert("RGB").resize((300, 100)).save(path)
    return path


@pytest.fixture(scope="module")
def model_of(checkpoint):
    """Return a function that loads a family's model once. Tests leave it as it was."""
    return cache(lambda family: load_model(str(checkpoint(family)), "cpu"))


@pytest.mark.parametrize("family", PROCESSORS)
def test_what_was_kept_is_told_and_drawn(family, checkpoint, wide, tmp_path):
    out = tmp_path / "map.png"
    result = clasp(
        *("ask", wide, QUESTION, "--model", checkpoint(family), "--out", out),
        *("--keep", 5, "--max-new-tokens", 3, "--json"),
    )
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["picture"] == str(out)
    assert answer["visual_tokens"]["kept"] == len(answer["indices"]) == 5 * IMAGES.get(family, 1)
    assert answer["indices"][-1] < answer["visual_tokens"]["all"]
    assert answer["new_tokens"] == {"all": 3, "kept": 3}
    assert answer["kv_cache_bytes"]["kept"] < answer["kv_cache_bytes"]["all"]
    page = np.asarray(Image.open(out).convert("RGB"))
    assert (page == PIVOT_COLOR).all(-1).sum() > 100
    assert (page == COMPLETION_COLOR).all(-1).sum() > 100


@pytest.mark.parametrize("family", PROCESSORS)
def test_a_schedule_drops_every_token_at_one_stage(family, model_of, wide):
    loaded = model_of(family)
    problem = refusal(loaded.model.config.get_text_config())
    if problem:
        pytest.skip(problem)
    schedule = Schedule({0: 0.5, 2: 3})
    asked = compare(loaded, load_image(wide), QUESTION, keep=schedule, max_new_tokens=2)
    first, last = asked.stages
    assert first.tokens_before == asked.all_tokens.visual_tokens
    assert last.tokens_before == first.tokens_after > last.tokens_after
    assert last.tokens_after == 3 * IMAGES.get(family, 1)
    _, _, dropped = overlay(loaded, asked, 200)
    assert [len(stage.indices) for stage in dropped] == [
        stage.tokens_before - stage.tokens_after for stage in asked.stages
    ]


@pytest.mark.parametrize("family", PROCESSORS)
def test_just_the_kept_tokens_have_colours(family, model_of, tmp_path):
    """On an image of one strong colour, only kept tokens and the white gaps are not grey."""
    path = tmp_path / "red.png"
    Image.new("RGB", (90, 60), (220, 20, 20)).save(path)
    loaded = model_of(family)
    asked = compare(loaded, load_image(path), QUESTION, keep=4, max_new_tokens=2)
    _, drawn, _ = overlay(loaded, asked, 480)
    pixels = np.asarray(drawn).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 60)
    scale = drawn.width / _canvas_width(asked)
    boxes = {
        token: box
        for view in asked.views
        for token, box in zip(view.tokens, view.boxes, strict=True)
    }
    # The frame covers part of each box.
    area = sum(
        (right - left) * (bottom - top) * scale**2
        for left, top, right, bottom in (boxes[token] for token in asked.indices)
    )
    assert 0.3 * area < red.sum() < area


def _canvas_width(asked):
    sizes = [view.pixels.shape[:0:-1] for view in asked.views]
    return beside_each_other([Image.new("RGB", tuple(size)) for size in sizes])[0].width


def changed(checkpoint_folder, tmp_path, **settings):
    """Copy a checkpoint folder and change settings of its processor."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint_folder, folder)
    path = folder / "processor_config.json"
    data = json.loads(path.read_text())
    for name, value in settings.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(data))
    return folder


def asking(folder, question=QUESTION, keep=4):
    loaded = load_model(str(folder), "cpu")
    return compare(loaded, load_image(SCENE), question, keep=keep, max_new_tokens=2)


SQUARE = {"height": 16, "width": 16}


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("llava_next", {"patch_size": 8}, "makes .* image tokens .*, the model .*: check patch_si"),
        ("video_llava", {"patch_size": 8}, "makes 9 image tokens of this image, the model 36: che"),
        ("internvl", {"image_seq_length": 4}, "makes .*, the model .*: check image_seq_length in"),
        ("gemma3", {"image_seq_length": 4}, "makes 4 image tokens of this image, the model 9: che"),
        ("llava_onevision", {"num_image_tokens": 16}, "check vision_feature_select_strategy, num_"),
        ("paligemma", {"image_processor": {"image_seq_length": 4}}, "makes 4 image tokens of this"),
        ("gemma3", {"image_processor": {"size": SQUARE}}, r"pixels of shape \[1, 3, 16, 16\], the"),
        (
            "llava_onevision",
            {"image_processor": {"image_grid_pinpoints": [[24, 24]]}},
            "does not fit the model: pixel_values has 2 tiles, but image_sizes",
        ),
        (
            "video_llava",
            {"image_processor": {"crop_size": SQUARE}},
            r"pixel_values_images must be of 24 x 24 pixels, .* got \[1, 3, 16, 16\]",
        ),
        ("qwen3_vl", {"image_processor": {"merge_size": 1}}, "image tokens of this image, the mo"),
        ("qwen2_vl", {"image_processor": {"patch_size": 8}}, "cannot "),
        ("internvl", {"image_processor": {"image_std": [0, 0, 0]}}, "pixels that are not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_processor_that_does_not_fit(checkpoint, tmp_path, family, settings, said):
    with pytest.raises(CommandError, match=said) as error:
        asking(changed(checkpoint(family), tmp_path, **settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("token", ["<image_soft_token>", "<start_of_image>"])
def test_a_question_with_an_image_of_its_own(checkpoint, token):
    with pytest.raises(UsageError, match=f"QUESTION must not contain '{token}', which stands for"):
        asking(checkpoint("gemma3"), f"what is {token}")


def test_a_chat_template_without_the_token_of_the_processor(checkpoint, tmp_path):
    folder = changed(checkpoint("gemma3"), tmp_path)
    (folder / "chat_template.jinja").write_text("user <image_soft_token> answer")
    with pytest.raises(CommandError, match="must write '<start_of_image>', the image token of its"):
        asking(folder)


def test_a_family_without_chat_templates_is_asked_without_one(checkpoint, tmp_path):
    folders = {}
    for family in ("paligemma", "gemma3"):
        folders[family] = changed(checkpoint(family), tmp_path / family)
        (folders[family] / "chat_template.jinja").unlink()
    loaded = load_model(str(folders["paligemma"]), "cpu")
    with apply_clasp(loaded.model) as handle:
        prompt = prepare(loaded, handle.adapter, load_image(SCENE), QUESTION)
    words = loaded.processor.decode(prompt.inputs["input_ids"][0, prompt.visual_tokens :])
    assert words.split() == ["<s>", *QUESTION.split()]
    with pytest.raises(CommandError, match="its processor has no chat template, so the pr"):
        load_model(str(folders["gemma3"]), "cpu")


class Wrapped:
    """A processor that wraps another."""

    def __init__(self, processor):
        self.processor = processor

    def __getattr__(self, name):
        return getattr(self.processor, name)


class Blind(Wrapped):
    def __call__(self, **arguments):
        inputs = self.processor(**arguments)
        del inputs["pixel_values"]
        return inputs


def test_a_processor_that_makes_no_pixels(checkpoint, wide):
    loaded = load_model(str(checkpoint("internvl")), "cpu")
    loaded = LoadedModel(loaded.model, Blind(loaded.processor), "it")
    with pytest.raises(CommandError, match="the processor of it makes no pixel_values of this ima"):
        compare(loaded, load_image(wide), QUESTION, keep=2)


class Panning(Wrapped):
    """Also makes crops of the image, which have placeholders of their own in the prompt."""

    def __call__(self, **arguments):
        crops = {"min_crop_size": 30, "max_num_crops": 4, "min_ratio_to_activate": 1.2}
        crops = {f"pan_and_scan_{name}": value for name, value in crops.items()}
        return self.processor(**arguments, do_pan_and_scan=True, **crops)


def test_crops_that_stand_apart_are_an_image_each(checkpoint, wide):
    loaded = load_model(str(checkpoint("gemma3")), "cpu")
    loaded = LoadedModel(loaded.model, Panning(loaded.processor), loaded.name)
    asked = compare(loaded, load_image(wide), QUESTION, keep=2, max_new_tokens=2)
    assert len(asked.views) == 4
    assert asked.all_tokens.visual_tokens == 4 * 9
    assert asked.kept_tokens.visual_tokens == 4 * 2
    assert [token // 9 for token in asked.indices] == [0, 0, 1, 1, 2, 2, 3, 3]
    _, drawn, _ = overlay(loaded, asked, 100)
    assert (np.asarray(drawn) == PIVOT_COLOR).all(-1).any()
    with pytest.raises(UsageError, match=r"--keep must be in 1\.\.9, "):
        compare(loaded, load_image(wide), QUESTION, keep=10)


@pytest.mark.skipif(is_torchvision_available(), reason="needs an environment without torchvision")
def test_videos_are_left_out_of_a_processor_without_torchvision(checkpoint):
    kind = load_processor(str(checkpoint("qwen2_vl")))
    assert type(kind).__name__ == "Qwen2VLProcessor"
    assert kind.video_processor is None


@pytest.mark.skipif(is_torchvision_available(), reason="needs an environment without torchvision")
def test_pixtrals_processor_needs_torchvision_where_nothing_takes_its_place(
    checkpoint, monkeypatch
):
    folder = str(checkpoint("mistral3"))
    assert type(load_processor(folder)).__name__ == "PixtralProcessor"
    pillow = "transformers.models.pixtral.image_processing_pil_pixtral"
    monkeypatch.setitem(sys.modules, pillow, None)  # as in a release that does not have it
    with pytest.raises(CommandError, match="requires the Torchvision library"):
        loading.load_model(folder, "cpu")


def test_a_folder_without_a_processor_is_an_error(checkpoint, tmp_path):
    folder = changed(checkpoint("internvl"), tmp_path)
    (folder / "processor_config.json").unlink()
    with pytest.raises(CommandError, match="cannot be loaded as an image-text model: "):
        loading.load_model(str(folder), "cpu")


def test_more_than_there_are_tokens_cannot_be_kept(checkpoint, wide):
    result = clasp("ask", wide, QUESTION, "--model", checkpoint("qwen2_vl"), "--keep", 999)
    assert result.exit_code == 2
    assert "--keep must be in 1.." in message(result)
