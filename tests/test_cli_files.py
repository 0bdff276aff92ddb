"""Error messages for invalid files, devices and text on the command line."""

import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from running import QUESTION, SCENE, clasp, message, variant

from clasp_kernels.cli import files, loading
from clasp_kernels.cli.errors import CommandError, UsageError
from clasp_kernels.cli.loading import load_image, load_profile, pick_device


@pytest.fixture(autouse=True)
def no_work(monkeypatch, request):
    if "works" not in request.fixturenames:
        monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("worked first"))


@pytest.fixture
def works():
    """Request this in tests that get as far as loading the model."""


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("", "IMAGE must name a file, got an empty argument"),
        ("https://a.b/c.png", "URLs are not fetched: download https://a.b/c.png first"),
        ("file:///c.png", "URLs are not fetched: download file:///c.png first"),
        ("/dev/null", "IMAGE: /dev/null is a device or a pipe, not a file"),
        ("/dev/zero", "IMAGE: /dev/zero is a device or a pipe, not a file"),
        (SCENE + "/x", "IMAGE: there is no file"),
    ],
)
def test_an_image_that_is_no_file(image, said):
    result = clasp("ask", image, QUESTION)
    assert result.exit_code == 2
    assert said in message(result)


def test_a_pipe_is_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for load, argument in ((load_image, "IMAGE"), (load_profile, "--profile")):
        with pytest.raises(UsageError, match=f"{argument}: .* is a device or a pipe, not a file"):
            load(pipe)
    with pytest.raises(CommandError, match="cannot be written: it is a pipe or a socket"):
        files.check_writable(str(pipe))


def test_a_name_that_is_too_long_is_one_sentence():
    result = clasp("ask", "x" * 5000 + ".png", QUESTION)
    assert result.exit_code == 1
    assert message(result).endswith("cannot be read: File name too long")
    result = clasp("ask", SCENE, QUESTION, "--out", "x" * 5000 + ".png")
    assert result.exit_code == 1
    assert message(result).endswith("cannot be written: File name too long")


def test_a_broken_exif_tag_is_no_traceback(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2)
    exif += struct.pack("<HHII", 0x100, 5, 1, 38)  # ImageWidth, as a fraction
    exif += struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)  # Orientation: rotated
    exif += b"\0\0\0\0" + struct.pack("<2I", 1, 1)
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (32, 24)).save(path, exif=exif)
    with pytest.raises(CommandError, match="cannot be read, its EXIF data is damaged: "):
        load_image(path)


@pytest.mark.parametrize(
    "error", [struct.error("x"), TypeError("x"), IndexError("x"), RecursionError("x"), KeyError()]
)
def test_whatever_pillow_raises_is_said(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(CommandError, match=f"IMAGE: {SCENE} cannot be read: "):
        load_image(SCENE)


def test_an_image_that_memory_does_not_hold(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(CommandError, match="cannot be read: there is not enough memory for it"):
        load_image(SCENE)


def test_ctrl_c_is_no_damaged_image(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_image(SCENE)


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp", "ppm", "tga", "ico"]
)
def test_mutated_files_of_many_formats_are_refused_in_words(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    with Image.open(SCENE) as scene:
        scene.convert("RGB").resize((24, 16)).save(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    draws = np.random.default_rng(7)
    for _ in range(60):
        content = whole.copy()
        where = draws.integers(0, min(len(content), 120), 3)
        content[where] = draws.integers(0, 256, 3)
        path.write_bytes(content[: draws.integers(1, len(content) + 1)].tobytes())
        try:
            assert load_image(path).mode == "RGB"
        except CommandError as error:
            assert str(path) in str(error)


def test_an_image_without_pixels(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda _: Image.new("RGB", (0, 4)))
    with pytest.raises(CommandError, match="it has no pixels"):
        load_image(SCENE)


def test_a_question_is_text():
    assert files.as_text("QUESTION", "caf\udcc3\udca9?") == "café?"  # as decoded in the C locale
    result = clasp("ask", SCENE, os.fsdecode(b"caf\xe9, how many?"))
    assert result.exit_code == 2
    assert message(result) == r"Error: QUESTION is not valid UTF-8: 'caf\udce9, how many?'"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", ""], "--out must name a file, got an empty argument"),
        (["--profile", ""], "--profile must name a file, got an empty argument"),
        (["--profile", "none.json"], "--profile: there is no file none.json"),
        (["--profile", "/dev/zero"], "--profile: /dev/zero is a device or a pipe, not a file"),
    ],
)
def test_empty_arguments_and_profiles_that_are_no_file(options, said):
    result = clasp("ask", SCENE, QUESTION, *options)
    assert result.exit_code == 2
    assert said in message(result)


def test_an_empty_folder_name_of_the_demo():
    result = clasp("demo", "--out", "")
    assert result.exit_code == 2
    assert "--out must name a folder, got an empty argument" in message(result)


def test_the_photo_is_not_overwritten(tmp_path):
    photo, link = tmp_path / "photo.png", tmp_path / "link.png"
    Image.new("RGB", (8, 8)).save(photo)
    link.symlink_to(photo)
    for out in (photo, link):
        result = clasp("ask", photo, QUESTION, "--out", out)
        assert result.exit_code == 2
        assert f"--out {out} would overwrite {photo}, which is read" in message(result)


def test_a_disk_that_is_full_by_then_is_said_after_the_answer(works):
    result = clasp("ask", SCENE, QUESTION, "--out", "/dev/full", "--max-new-tokens", 1)
    assert result.exit_code == 1
    assert message(result) == "Error: --out /dev/full cannot be written: No space left on device"
    assert "visual tokens" in result.stdout


def test_a_name_of_emoji_codes_is_printed_as_it_is(works, tmp_path):
    out = tmp_path / ":smile:[bold].png"
    result = clasp("ask", SCENE, "Is :dog: here?", "--out", out, "--max-new-tokens", 1)
    assert result.exit_code == 0, result.output
    assert f"Picture: {out}" in result.stdout
    assert result.stdout.startswith("Is :dog: here?\n")


@pytest.mark.parametrize(
    "device", ["meta", "cuda:99", "xpu:9", "nonsense", "hpu", "cpu:x", "\udce9"]
)
def test_a_device_that_cannot_be_computed_on(device):
    with pytest.raises(CommandError, match=r"--device .* cannot be used here: ") as error:
        pick_device(device)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_an_empty_device():
    with pytest.raises(UsageError, match="--device must name a device, got an empty argument"):
        pick_device("")


def test_another_name_of_the_cpu_computes_in_float32(works, tmp_path):
    model = variant(tmp_path, "config.json", {"dtype": "bfloat16"})
    assert loading.load_model(str(model), "cpu:0").model.dtype == torch.float32
