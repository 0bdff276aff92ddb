"""The picture puts the grid of patches over the image as the model saw it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from running import QUESTION, clasp, message, variant

from clasp_kernels.cli.loading import LoadedModel, load_model
from clasp_kernels.cli.picture import NoPicture, as_seen, beside_each_other
from clasp_kernels.models import apply_clasp

RED, BLACK = (255, 0, 0), (0, 0, 0)


@pytest.fixture(scope="module")
def bundled():
    return load_model(None, "cpu")


def wide():
    """Return a white 300 x 100 image with a red square in the middle."""
    image = Image.new("RGB", (300, 100), "white")
    image.paste(RED, (100, 0, 200, 100))
    return image


def seen_by(bundled, tmp_path, **settings):
    model = variant(tmp_path, "processor_config.json", {"image_processor": settings})
    processor = type(bundled.processor).from_pretrained(model)
    with apply_clasp(bundled.model) as handle:
        inputs = processor.image_processor(images=wide(), return_tensors="pt")
        [view] = handle.adapter.views(inputs)
    return np.asarray(as_seen(LoadedModel(bundled.model, processor, "it"), view.pixels))


def is_near(pixels, color):
    return np.abs(pixels.astype(int) - color).max(-1) <= 2


def test_padding_to_a_square(bundled, tmp_path):
    seen = seen_by(bundled, tmp_path, image_processor_type="LlavaImageProcessor", do_pad=True)
    assert seen.shape == (96, 96, 3)
    grey = is_near(seen, 127)
    assert grey[:30].all() and grey[66:].all()
    assert is_near(seen, RED)[36:60, 36:60].all()
    assert is_near(seen, 255)[36:60, :28].all()


def test_squashing_to_a_square(bundled, tmp_path):
    seen = seen_by(bundled, tmp_path)
    assert is_near(seen, RED)[:, 36:60].all()
    assert is_near(seen, 255)[:, :28].all()


CENTRE = {"do_center_crop": True, "crop_size": {"height": 96, "width": 96}}


def test_a_centre_crop(bundled, tmp_path):
    seen = seen_by(bundled, tmp_path, size={"shortest_edge": 96}, **CENTRE)
    assert is_near(seen, RED)[:, 4:-4].all()


def test_a_centre_crop_without_resizing(bundled, tmp_path):
    seen = seen_by(bundled, tmp_path, do_resize=False, **CENTRE)
    assert seen.shape == (96, 96, 3)
    assert is_near(seen, RED).all()


def test_a_centre_crop_that_is_larger_than_the_image(bundled, tmp_path):
    seen = seen_by(bundled, tmp_path, size={"height": 48, "width": 48}, **CENTRE)
    # The border is padding, which is black before normalisation.
    assert is_near(seen, BLACK)[:22].all()
    assert is_near(seen, RED)[30:66, 42:54].all()


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"image_mean": [0.1, 0.4, 0.7], "image_std": [0.2, 0.3, 0.9]},
        {"rescale_factor": 1 / 127.5},
        {"image_processor_type": "ViTImageProcessor"},
        {"image_processor_type": "SiglipImageProcessor"},
    ],
)
def test_colours_are_those_of_the_image(bundled, tmp_path, settings):
    seen = seen_by(bundled, tmp_path, **settings)
    assert is_near(seen, RED)[:, 36:60].all()
    assert is_near(seen, 255)[:, :28].all()


def test_what_the_last_patches_do_not_reach_is_not_in_the_picture(bundled, tmp_path):
    assert seen_by(bundled, tmp_path, size={"height": 100, "width": 103}).shape == (96, 96, 3)


NORMAL = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": False}


@pytest.mark.parametrize(
    ("described", "pixels", "said"),
    [
        ({}, torch.zeros(3, 96, 96), "colour normalisation .* SimpleNamespace, is not known"),
        (NORMAL, torch.full((3, 96, 96), -3.0), "colour normalisation of .* is not known"),
        (NORMAL, torch.full((3, 96, 96), torch.nan), "colour normalisation of .* is not known"),
        (NORMAL, torch.zeros(5, 3, 96, 96), r"shape \[5, 3, 96, 96\], not that of one RGB image"),
        (NORMAL, torch.zeros(1, 96, 96), r"shape \[1, 96, 96\], not that of one RGB image"),
    ],
)
def test_what_is_not_known_is_not_drawn(bundled, described, pixels, said):
    """Some image processors do not have the attributes that describe their normalisation."""
    processor = SimpleNamespace(image_processor=SimpleNamespace(**described))
    with pytest.raises(NoPicture, match=said):
        as_seen(LoadedModel(bundled.model, processor, "it"), pixels)


def test_views_stand_beside_each_other_on_white():
    red, black = Image.new("RGB", (120, 60), RED), Image.new("RGB", (30, 90), BLACK)
    page, corners = beside_each_other([red, black])
    assert corners == [(0, 0), (122, 0)]
    assert page.size == (152, 90)
    pixels = np.asarray(page)
    assert (pixels[:60, :120] == RED).all() and (pixels[:, 122:] == BLACK).all()
    assert (pixels[:, 120:122] == 255).all() and (pixels[60:, :120] == 255).all()


def test_many_views_stand_in_rows():
    page, corners = beside_each_other([Image.new("RGB", (60, 60), RED)] * 5)
    assert corners == [(0, 0), (61, 0), (122, 0), (0, 61), (61, 61)]
    assert page.size == (182, 121)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_answer_without_a_picture_says_why(monkeypatch, tmp_path, options):
    def unknown(*_, **__):
        raise NoPicture("nobody knows")

    monkeypatch.setattr("clasp_kernels.cli.picture.overlay", unknown)
    wide().save(tmp_path / "wide.png")
    out = tmp_path / "map.png"
    result = clasp("ask", tmp_path / "wide.png", QUESTION, "--out", out, *options)
    assert result.exit_code == 0
    said = message(result) if options else result.stdout
    assert "No picture: nobody knows." in said
    assert not out.exists()
    assert ('"picture": null' in result.stdout) == bool(options)
