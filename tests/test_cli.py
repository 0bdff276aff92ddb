"""The command line: answers, pictures, JSON and errors."""

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from rich.console import Console
from running import QUESTION, SCENE, clasp, message

from clasp_kernels.bundled import bundled_path, tiny_vlm_path
from clasp_kernels.cli import doctor, loading, main, report
from clasp_kernels.cli.comparison import (
    Comparison,
    PhaseClock,
    Phases,
    Run,
    Stage,
    compare,
)
from clasp_kernels.cli.demo import DemoAnswer, DemoResults
from clasp_kernels.cli.loading import load_image, load_model, pick_device
from clasp_kernels.models import apply_clasp
from clasp_kernels.policy import CATEGORIES, CategoryPolicy, Profile
from clasp_kernels.visualize import COMPLETION_COLOR, PIVOT_COLOR

NUM_TOKENS = 144
# Why "What does the sign say?" is about text.
REASON = "matched 'what does the sign say'"


@pytest.fixture(scope="module")
def loaded():
    return load_model(None, "cpu")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Run ``clasp ask --json --keep 16``; return the result, its JSON and its picture."""
    path = tmp_path_factory.mktemp("ask") / "map.png"
    result = clasp("ask", SCENE, QUESTION, "--keep", 16, "--out", path, "--json")
    assert result.exit_code == 0, result.output
    with Image.open(path) as picture:
        return result, json.loads(result.stdout), picture.convert("RGB")


def test_json_is_all_there_is_on_stdout(asked):
    result, answer, _ = asked
    assert json.dumps(answer, indent=2) + "\n" == result.stdout


def test_json_says_what_was_kept_and_what_it_saved(asked):
    _, answer, _ = asked
    assert answer["question"] == QUESTION
    assert answer["category"] == {"name": "ocr", "reason": REASON}
    pivots = answer["visual_tokens"].pop("pivots")
    assert answer["visual_tokens"] == {"all": NUM_TOKENS, "kept": 16}
    assert pivots == sum(answer["is_pivot"]) >= 1
    assert answer["indices"] == sorted(set(answer["indices"]))
    assert len(answer["indices"]) == len(answer["is_pivot"]) == 16
    assert 0 <= answer["indices"][0] <= answer["indices"][-1] < NUM_TOKENS
    cache = answer["kv_cache_bytes"]
    saved_tokens = NUM_TOKENS - 16
    assert (cache["all"] - cache["kept"]) % saved_tokens == 0
    assert cache["kept"] < cache["all"] / 3


def test_times_add_up(loaded, monkeypatch):
    # One run, because medians of several runs need not add up.
    monkeypatch.setattr("clasp_kernels.cli.comparison._MAX_RUNS", 1)
    result = compare(loaded, load_image(SCENE), QUESTION, keep=16, max_new_tokens=4)
    assert result.timed_runs == 1
    for run in (result.all_tokens, result.kept_tokens):
        seconds = run.seconds
        assert min(seconds.vision, seconds.prefill, seconds.decode) > 0
        phases = seconds.vision + seconds.selection + seconds.prefill + seconds.decode
        assert phases <= seconds.total
    assert result.all_tokens.seconds.selection == 0
    assert result.kept_tokens.seconds.selection > 0


def comparison_of(full, kept):
    return Comparison(
        question="How many?",
        category="counting",
        reason="matched 'how many'",
        all_tokens=Run(full, 3, 100, 40_000, Phases(0.010, 0.0, 0.020, 0.040, 0.080)),
        kept_tokens=Run(kept, 2, 25, 10_000, Phases(0.011, 0.003, 0.005, 0.030, 0.050)),
        stages=(Stage(None, 100, tuple(range(25)), (True, True, *[False] * 23)),),
        num_layers=6,
        timed_runs=1,
    )


@pytest.mark.parametrize(("kept", "said"), [("two", "same"), ("ten", "different")])
def test_every_number_stands_in_its_place(kept, said):
    console = Console(width=120)
    with console.capture() as printed:
        console.print(report.comparison_table(comparison_of("two", kept)))
    rows = [re.split(r"\s{2,}", line.strip()) for line in printed.get().splitlines()[2:]]
    assert rows == [
        ["answer", "two", kept, said],
        ["visual tokens", "100", "25 (2 pivots)", "-75 %"],
        ["KV cache", "40.00 kB", "10.00 kB", "-75 %"],
        ["vision", "10.0 ms", "11.0 ms", "+10 %"],
        ["selection", "-", "3.0 ms"],
        ["prefill", "20.0 ms", "5.0 ms", "-75 %"],
        ["decode", "40.0 ms", "30.0 ms", "-25 %"],
        ["total", "80.0 ms", "50.0 ms", "-38 %"],
    ]


def test_the_demo_counts_the_right_answers_of_each_way(loaded):
    answers = [("two", "two"), ("two", "ten"), ("two", "ten"), ("ten", "ten")]
    results = DemoResults(
        loaded, tuple(DemoAnswer("two", comparison_of(*answer)) for answer in answers)
    )
    assert results.summary() == "Right (+): 3 of 4 with all tokens, 1 of 4 with those kept."


def test_the_picture_marks_just_the_kept_tokens(asked):
    _, answer, page = asked
    side = 48  # 576 pixels / 12 patches
    top = next(y for y in range(page.height) if page.getpixel((616, y)) != (255, 255, 255))
    overlay = np.asarray(page.crop((608, top, 608 + 576, top + 576))).astype(int)
    frames = {}
    for number in range(NUM_TOKENS):
        row, column = number // 12 * side, number % 12 * side
        corner = tuple(overlay[row + side - 1, column + side - 1])
        if corner in (PIVOT_COLOR, COMPLETION_COLOR):
            frames[number] = corner == PIVOT_COLOR
        else:
            patch = overlay[row : row + side, column : column + side]
            assert (patch.max(-1) == patch.min(-1)).all(), f"patch {number} is not grey"
    assert frames == dict(zip(answer["indices"], answer["is_pivot"], strict=True))


def test_ask_prints_both_answers_and_why(tmp_path):
    result = clasp(
        *("ask", SCENE, QUESTION, "--keep", 20, "--category", "spatial", "--out"),
        *(tmp_path / "map.png", "--max-new-tokens", 3),
    )
    assert result.exit_code == 0, result.output
    assert "Category spatial: given with --category" in result.stdout
    for row in ("answer", "visual tokens", "KV cache", "vision", "selection", "prefill", "decode"):
        assert row in result.stdout
    assert f"Picture: {tmp_path / 'map.png'}" in result.stdout.replace("\n", "")
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_a_model_path_is_no_markup_and_names_stay_whole_on_a_narrow_terminal(tmp_path):
    model = tmp_path / "x[" / "bold] [v2]"
    shutil.copytree(tiny_vlm_path(), model)
    command = ("ask", SCENE, QUESTION, "--model", model, "--out", tmp_path / "map.png")
    result = clasp(*command, columns=40)
    assert result.exit_code == 0, result.output
    assert f"Model:{model}on".replace(" ", "") in "".join(result.stdout.split())
    lines = result.stdout.splitlines()
    for row in ("visual tokens", "KV cache", "selection"):
        assert any(line.startswith(f"{row} ") for line in lines)


def test_an_answer_of_one_token_has_no_decode_time(tmp_path):
    result = clasp("ask", SCENE, QUESTION, "--out", tmp_path / "map.png", "--max-new-tokens", 1)
    assert result.exit_code == 0, result.output
    [decode] = [line.split() for line in result.stdout.splitlines() if line.startswith("decode")]
    assert decode[-1] == "-"


def test_all_tokens_give_the_answer_of_plain_generate(loaded):
    image = load_image(SCENE)
    comparison = compare(loaded, image, QUESTION, keep=4, max_new_tokens=6)
    inputs = loaded.processor(
        images=image, text=f"USER: <image>\n{QUESTION} ASSISTANT:", return_tensors="pt"
    )
    with torch.inference_mode():
        output = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=6)
    new_tokens = output[0, inputs["input_ids"].shape[1] :]
    expected = loaded.processor.decode(new_tokens, skip_special_tokens=True).strip()
    assert comparison.all_tokens.answer == expected
    assert comparison.all_tokens.new_tokens == len(new_tokens)


def test_keeping_every_token_changes_nothing(loaded):
    profile = Profile(
        "deepest layer only", "llava", (-1,), "test", {"general": CategoryPolicy((1.0,), 0.5)}
    )
    comparison = compare(
        loaded, load_image(SCENE), QUESTION, keep=NUM_TOKENS, profile=profile, max_new_tokens=6
    )
    assert comparison.kept_tokens.answer == comparison.all_tokens.answer
    assert comparison.kept_tokens.kv_cache_bytes == comparison.all_tokens.kv_cache_bytes
    assert comparison.indices == tuple(range(NUM_TOKENS))
    # The router's category, ocr, is not in this profile.
    assert comparison.category == "general"
    assert f"ocr ({REASON}) is not in profile" in comparison.reason


def test_the_kept_tokens_are_those_of_apply_clasp(loaded):
    image = load_image(SCENE)
    comparison = compare(loaded, image, QUESTION, keep=16, max_new_tokens=1)
    inputs = loaded.processor(
        images=image, text=f"USER: <image>\n{QUESTION} ASSISTANT:", return_tensors="pt"
    )
    with apply_clasp(loaded.model, budget=16, processor=loaded.processor) as handle:
        loaded.model.generate(**inputs, do_sample=False, max_new_tokens=1)
        [stage] = handle.last.stages
        pivots = handle.profile.pivot_count("ocr", 16)
    assert comparison.indices == tuple(stage.indices[0].tolist())
    assert comparison.is_pivot == tuple(stage.is_pivot[0].tolist())
    assert comparison.num_pivots == pivots


class SlowModel:
    """A model whose parts sleep for known times."""

    device = torch.device("cpu")

    class Sleep(torch.nn.Module):
        def forward(self, seconds):
            time.sleep(seconds)

    def __init__(self):
        self.tower, self.decoder = self.Sleep(), self.Sleep()

    def get_encoder(self, modality):
        return {"image": self.tower}[modality]

    def get_decoder(self):
        return self.decoder

    def generate(self, streamer):
        streamer.put(None)  # the prompt
        self.tower(0.02)
        self.decoder(0.04)
        streamer.put(None)
        for _ in range(3):
            self.decoder(0.01)
            streamer.put(None)
        time.sleep(0.05)
        streamer.end()


def test_each_phase_gets_its_own_time():
    model = SlowModel()
    with PhaseClock(model) as clock:
        model.generate(clock)
    phases = clock.phases(None)
    # A sleep takes at least the requested time.
    assert phases.vision >= 0.02
    assert phases.prefill >= 0.04
    assert phases.decode >= 0.03
    assert phases.selection == 0
    assert phases.total >= phases.vision + phases.prefill + phases.decode + 0.05
    model.tower(0)
    assert clock.phases(None) == phases  # the hooks are gone
    # The time of encode() beyond the tower's own time counts as selection.
    for vision_seconds, longer in ((phases.vision + 0.5, 0.5), (phases.vision / 2, 0)):
        record = SimpleNamespace(
            vision_seconds=vision_seconds,
            selection_seconds=0.25,
            stages=[SimpleNamespace(layer=None, seconds=0.25)],
        )
        pruned = clock.phases(record)
        assert pruned.selection == pytest.approx(longer + 0.25)
        assert replace(pruned, selection=0.0) == phases


def test_selecting_inside_the_decoder_is_not_counted_as_prefill():
    model = SlowModel()
    with PhaseClock(model) as clock:
        model.generate(clock)
    whole = clock.phases(None)
    stages = [
        SimpleNamespace(layer=layer, seconds=seconds)
        for layer, seconds in ((None, 0.5), (2, 0.01), (4, 0.02))
    ]
    record = SimpleNamespace(vision_seconds=0.0, selection_seconds=0.53, stages=stages)
    pruned = clock.phases(record)
    assert pruned.selection == 0.53
    assert pruned.prefill == pytest.approx(whole.prefill - 0.03)
    assert replace(pruned, selection=0.0, prefill=whole.prefill) == whole


def test_the_selection_time_is_that_of_the_record(loaded, monkeypatch):
    records, phases = [], PhaseClock.phases

    def spied(clock, record):
        records.append(record)
        return phases(clock, record)

    monkeypatch.setattr(PhaseClock, "phases", spied)
    monkeypatch.setattr("clasp_kernels.cli.comparison._MAX_RUNS", 1)
    kept = compare(loaded, load_image(SCENE), QUESTION, keep=16, max_new_tokens=2).kept_tokens
    pruned, unpruned = records
    assert unpruned is None
    tower_excess = max(0.0, pruned.vision_seconds - kept.seconds.vision)
    assert kept.seconds.selection == tower_excess + pruned.selection_seconds
    assert pruned.selection_seconds > 0


def test_every_step_is_announced(loaded):
    steps = []
    compare(loaded, load_image(SCENE), QUESTION, keep=4, max_new_tokens=1, on_step=steps.append)
    assert steps[0] == "Warming up with 4 of 144 visual tokens"
    assert steps[1] == "Warming up with all 144 visual tokens"
    assert {step.split(",")[0] for step in steps[2:]} == {
        "Answering with 4 of 144 visual tokens",
        "Answering with all 144 visual tokens",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such_file.png"], ["IMAGE: there is no file no_such_file.png"]),
        (["."], ["IMAGE: . is a folder, not a file"]),
        (
            [SCENE, "--keep", 145],
            ["--keep must be in 1..144, the visual tokens the bundled tiny LLaVA", "got 145"],
        ),
        ([SCENE, "--category", "maps"], ["--category must be one of", "got 'maps'", *CATEGORIES]),
        # Typer writes these messages, and changes them between versions.
        ([SCENE, "--keep", 0], ["--keep"]),
        ([SCENE, "--max-new-tokens", 0], ["--max-new-tokens"]),
        ([SCENE, "--profile", "none.json"], ["--profile"]),
        ([SCENE, "--nonsense"], ["--nonsense"]),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_why(arguments, said):
    image, *options = arguments
    result = clasp("ask", image, QUESTION, *options)
    assert result.exit_code == 2
    for words in said:
        assert words in message(result)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (" \n", "QUESTION must hold a word, got only blanks"),
        ("What is <image>?", "QUESTION must not contain '<image>', which stands for an image"),
    ],
)
def test_a_question_that_cannot_be_asked(question, said):
    result = clasp("ask", SCENE, question)
    assert result.exit_code == 2, result.output
    assert said in message(result)


def not_an_image(folder):
    path = folder / "notes.png"
    path.write_text("no picture")
    return [path], f"IMAGE: {path} is not an image that Pillow can read"


def a_truncated_image(folder):
    path = folder / "cut.png"
    path.write_bytes(bundled_path("demo", "scene_5.png").read_bytes()[:2000])
    return [path], f"IMAGE: {path} cannot be read"


def broken_metadata(folder):
    path = folder / "exif.webp"
    Image.new("RGB", (8, 8)).save(path, exif=b"Exif\0\0no TIFF header")
    return [path], f"IMAGE: {path} cannot be read, its EXIF data is damaged: not a TIFF file"


def a_broken_header(folder):
    path = folder / "header.ppm"
    path.write_bytes(b"P6 6x4 64 255\n")
    return [path], f"IMAGE: {path} cannot be read: invalid literal"


def pixels_without_a_scale(folder):
    path = folder / "depth.tiff"
    Image.new("F", (8, 8)).save(path)
    return [
        path
    ], f"IMAGE: {path} cannot be shown to a model: it has 32-bit pixels (Pillow's mode F)"


def more_pixels_than_pillow_reads(folder):
    path = folder / "huge.ppm"
    path.write_bytes(b"P6 99999 99999 255\n")
    return [path], f"IMAGE: {path} cannot be read: Image size (9999800001 pixels) exceeds limit"


def a_broken_profile(folder):
    path = folder / "profile.json"
    path.write_text('{"format": 7}')
    return [SCENE, "--profile", path], f"--profile: {path}: profile is missing field(s) 'name'"


def a_profile_that_does_not_fit(folder):
    path = folder / "profile.json"
    Profile("deep", "llava", (-9,), "test", {"general": CategoryPolicy((1.0,), 0.5)}).save(path)
    return [SCENE, "--profile", path], "CLASP cannot be applied to the bundled tiny LLaVA: profile"


def no_model(folder):
    return [SCENE, "--model", folder], f"--model {folder} cannot be loaded as an image-text model"


def damaged_model(folder, name, content):
    """Copy the bundled model and overwrite one file; return arguments and the expected error."""
    model = folder / "model"
    shutil.copytree(tiny_vlm_path(), model)
    (model / name).write_text(content)
    return [SCENE, "--model", model], f"--model {model} cannot be loaded as an image-text model: "


def weights_that_are_none(folder):
    arguments, said = damaged_model(folder, "model.safetensors", "garbage" * 100)
    return arguments, said + "Error while deserializing header"


def weights_that_do_not_fit(folder):
    config = json.loads((tiny_vlm_path() / "config.json").read_text())
    config["text_config"]["vocab_size"] = 100
    arguments, said = damaged_model(folder, "config.json", json.dumps(config))
    return arguments, said + "its weights are not those of its config.json: "


def a_broken_chat_template(folder):
    arguments, _ = damaged_model(folder, "chat_template.jinja", "{% for x in %}")
    return arguments, f"the chat template of {folder / 'model'} does not work: Expected an expr"


def no_device(folder):
    return [SCENE, "--device", "abacus"], "--device abacus cannot be used here"


def nowhere_to_write(folder):
    (folder / "file").write_text("")
    path = folder / "file" / "map.png"
    return [SCENE, "--out", path], f"--out {path} cannot be written"


def no_such_format(folder):
    path = folder / "map.nonsense"
    return [SCENE, "--out", path], f"--out {path} cannot be written: unknown file extension"


def a_format_without_colors(folder):
    path = folder / "map.xbm"
    return [SCENE, "--out", path], f"--out {path} cannot be written: cannot write mode RGB as XBM"


def a_folder_to_write_to(folder):
    return [SCENE, "--out", folder], f"--out {folder} cannot be written: it is a folder"


@pytest.mark.parametrize(
    "case", [nowhere_to_write, no_such_format, a_format_without_colors, a_folder_to_write_to]
)
def test_where_to_write_is_looked_at_before_any_work(case, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("worked first"))
    (image, *options), said = case(tmp_path)
    result = clasp("ask", image, QUESTION, *options)
    assert result.exit_code == 1
    assert said in message(result)


def test_no_permission_to_write_is_seen_before_any_work(tmp_path, monkeypatch):
    # Patched, because os.access allows everything for root.
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    path = tmp_path / "new" / "map.png"
    result = clasp("ask", SCENE, QUESTION, "--out", path)
    assert result.exit_code == 1
    assert f"--out {path} cannot be written: no permission to write {tmp_path}" in message(result)
    assert not path.parent.exists()


def test_the_demo_looks_where_to_write_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("clasp_kernels.cli.demo.run_demo", lambda *_, **__: pytest.fail("worked"))
    (tmp_path / "file").write_text("")
    result = clasp("demo", "--out", tmp_path / "file")
    assert result.exit_code == 1
    assert f"{tmp_path / 'file'} is no folder" in message(result)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_answer_outlives_a_picture_that_cannot_be_written(options, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("clasp_kernels.visualize.save_picture", full_disk)
    path = tmp_path / "map.png"
    result = clasp("ask", SCENE, QUESTION, "--out", path, *options)
    assert result.exit_code == 1
    assert f"--out {path} cannot be written: No space left on device" in message(result)
    if options:
        assert json.loads(result.stdout)["picture"] is None
    else:
        assert "visual tokens" in result.stdout
        assert "Picture" not in result.stdout


@pytest.mark.parametrize(
    "case",
    [
        not_an_image,
        a_truncated_image,
        broken_metadata,
        a_broken_header,
        pixels_without_a_scale,
        more_pixels_than_pillow_reads,
        a_broken_profile,
        a_profile_that_does_not_fit,
        no_model,
        weights_that_are_none,
        weights_that_do_not_fit,
        a_broken_chat_template,
        no_device,
    ],
)
def test_what_cannot_be_done_exits_with_1_and_says_why(case, tmp_path):
    (image, *options), said = case(tmp_path)
    result = clasp("ask", image, QUESTION, *options)
    assert result.exit_code == 1
    assert message(result).startswith("Error: ")
    assert said in message(result)
    assert "Traceback" not in result.output


def no_transformers(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    return "transformers is not installed; "


def old_transformers(monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.__version__", "4.57.6")
    return "transformers 4.57.6 is too old, 5.17.0 or later is needed; "


def broken_transformers(monkeypatch, tmp_path):
    (tmp_path / "transformers.py").write_text("raise ImportError('huggingface-hub>=9 is required')")
    monkeypatch.delitem(sys.modules, "transformers")
    monkeypatch.syspath_prepend(tmp_path)
    return "transformers cannot be imported (huggingface-hub>=9 is required); "


@pytest.mark.parametrize("break_it", [no_transformers, old_transformers, broken_transformers])
@pytest.mark.parametrize(
    "command", [("ask", SCENE, QUESTION), ("demo",), ("doctor", "--verify")], ids=lambda c: c[0]
)
def test_a_transformers_that_does_not_serve_is_one_sentence(
    monkeypatch, tmp_path, command, break_it
):
    said = break_it(monkeypatch, tmp_path)
    monkeypatch.setattr(doctor, "examine", examined)
    result = clasp(*command)
    assert result.exit_code == 1
    assert message(result) == f'Error: {said}pip install -U "clasp-kernels[hf]"'
    assert "Traceback" not in result.output


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = clasp("ask", SCENE, QUESTION)
    assert result.exit_code == 1
    assert 'pip install "clasp-kernels[cli]"' in message(result)


def test_without_typer_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("clasp_kernels.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == (
        "clasp: typer is not installed; the command line needs the [cli] extra: "
        'pip install "clasp-kernels[cli]"'
    )


def test_help_has_examples_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from clasp_kernels.cli import main\n"
        "sys.argv = ['clasp', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print('HEAVY', sorted({'torch', 'transformers', 'PIL', 'numpy', 'matplotlib'}\n"
        "    & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "ask", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert 'clasp ask photo.jpg "What does the sign say?"' in done.stdout
    assert "HEAVY []" in done.stdout
    for command in ("ask", "demo", "doctor"):
        assert command in clasp("--help").stdout
        assert f"clasp {command}" in clasp(command, "--help").stdout


def test_version():
    from clasp_kernels import __version__

    assert clasp("--version").stdout == f"clasp_kernels {__version__}\n"


def test_demo_asks_one_question_of_every_trained_category(tmp_path):
    questions = json.loads(bundled_path("demo", "questions.json").read_text())
    assert {entry["category"] for entry in questions} == set(CATEGORIES) - {"knowledge", "general"}
    result = clasp("demo", "--out", tmp_path / "out", "--keep", 16)
    assert result.exit_code == 0, result.output
    printed = " ".join(result.stdout.split())
    for entry in questions:
        assert entry["question"] in printed
        assert f"{entry['category']}, truth: {entry['answer']}" in printed
    right = re.search(rf"Right \(\+\): (\d) of {len(questions)} with all tokens", printed)
    assert right, printed
    assert int(right[1]) >= 4  # the bundled model is trained
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        sheet = np.asarray(sheet.convert("RGB"))
    for color in (PIVOT_COLOR, COMPLETION_COLOR):
        assert (sheet == color).all(-1).sum() > 1000


def test_doctor_json_holds_the_report():
    result = clasp("doctor", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["usable"] is True
    assert answer["report"]["torch"]["version"] == torch.__version__
    assert any(name.startswith("select_tokens on cpu") for name in answer["report"]["backends"])


HEALTHY = {
    "packages": {"transformers": "5.23.0", "pillow": "13.0.0", "safetensors": "0.8.0"},
    "torch": {"version": "2.13.0", "gpus": "none visible"},
    "extension": {"loaded": "yes", "cuda loaded": "no", "cuda reason": "built without"},
}


def examined(**changes):
    found = {**HEALTHY, **changes}
    return doctor.Examination(found, tuple(doctor.find_advice(found)))


@pytest.mark.parametrize(
    ("changes", "problem", "remedy", "usable"),
    [
        ({"torch": {"status": "error: gone"}}, "torch does not work: error: gone", "torch", False),
        ({"torch": {"version": "error: x"}}, "torch does not work: error: x", "torch", False),
        ({"extension": {"status": "SIGSEGV"}}, "the ops do not work: SIGSEGV", "reinst", False),
        (
            {"extension": {"status": "error: CLASP_KERNELS_CPU_CAPABILITY must be one of"}},
            "the ops do not work: error: CLASP_KERNELS_CPU_CAPABILITY",
            "set the environment variable right",
            False,
        ),
        (
            {"extension": {"loaded": "no", "reason": "not built"}},
            "reference is: not bu",
            "C++",
            True,
        ),
        (
            {
                "torch": {"version": "2.13.0", "gpus": "NVIDIA H200"},
                "extension": {"loaded": "yes", "cuda loaded": "no", "cuda reason": "no nvcc"},
            },
            "the CUDA kernels are not in use: no nvcc",
            "CLASP_KERNELS_BUILD_CUDA=1 pip install",
            True,
        ),
        (
            {"packages": {**HEALTHY["packages"], "transformers": "5.16.1"}},
            "transformers 5.16.1 is too old, 5.17.0 or later is needed",
            'pip install -U "clasp-kernels[hf]"',
            True,
        ),
        (
            {"packages": {**HEALTHY["packages"], "transformers": "99.0.0"}},
            "transformers 99.0.0 is newer than those that clasp_kernels was tested with, 5.17.0 to",
            "clasp doctor --verify tells",
            True,
        ),
        (
            {"packages": {**HEALTHY["packages"], "transformers": "not installed"}},
            "not installed: transformers; models cannot be run",
            'pip install "clasp-kernels[hf]"',
            True,
        ),
    ],
)
def test_doctor_says_what_is_missing_and_how_to_get_it(
    changes, problem, remedy, usable, monkeypatch
):
    examination = examined(**changes)
    monkeypatch.setattr(doctor, "examine", lambda: examination)
    result = clasp("doctor")
    assert problem in result.stdout
    assert remedy in result.stdout.split(problem)[1]
    assert result.exit_code == (0 if usable else 1)


def test_doctor_is_content_with_a_healthy_installation(monkeypatch):
    monkeypatch.setattr(doctor, "examine", examined)
    result = clasp("doctor")
    assert result.exit_code == 0
    assert "Nothing is missing." in result.stdout


def test_doctor_misses_the_bundled_model(monkeypatch):
    def gone():
        raise FileNotFoundError("tiny_vlm is missing")

    monkeypatch.setattr(doctor, "tiny_vlm_path", gone)
    [advice] = doctor.find_advice(HEALTHY)
    assert "tiny_vlm is missing" in advice.problem
    assert not advice.blocking


def test_doctor_verifies_that_pruning_is_right(monkeypatch):
    from clasp_kernels.models import verification

    # tests/models/families/test_every_family.py verifies all of them.
    monkeypatch.setattr(verification, "supported_model_types", lambda: ("llava", "qwen2_vl"))
    monkeypatch.setattr(verification, "_ATTENTIONS", ("sdpa",))
    few = [task for task in verification.TASKS if "prefill" in task.name]
    monkeypatch.setattr(verification, "TASKS", few)
    result = clasp("doctor", "--verify")
    assert result.exit_code == 0, result.output
    verification = result.stdout[result.stdout.index("control") :]
    for family in ("llava", "qwen2_vl"):
        rows = [line.split() for line in verification.splitlines() if line.startswith(f"{family} ")]
        assert len(rows) > len(few)  # and those of salience
        assert all(row[-1] == "ok" for row in rows)
    assert f"Pruning is correct with transformers {transformers.__version__}" in verification


def test_doctor_verifies_a_model_as_json(monkeypatch):
    from clasp_kernels.models import verification

    few = [task for task in verification.TASKS if "prefill" in task.name]
    assert any("stages" in task.name for task in few)
    monkeypatch.setattr(verification, "TASKS", few)
    monkeypatch.setattr(doctor, "examine", examined)
    result = clasp("doctor", "--verify", "--model", tiny_vlm_path(), "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    verification = json.loads(result.stdout)["verification"]
    assert verification["passed"] is True
    assert {check["family"] for check in verification["checks"]} == {"llava"}
    assert all(check["difference"] <= check["tolerance"] for check in verification["checks"])


@pytest.mark.parametrize("as_json", [False, True])
def test_doctor_exits_with_1_where_pruning_is_wrong(monkeypatch, as_json):
    from clasp_kernels.models import verification
    from clasp_kernels.models.families import llava

    project = llava.LlavaAdapter.project
    monkeypatch.setattr(
        llava.LlavaAdapter,
        "project",
        lambda self, model, tokens: project(self, model, tokens.flip(1)),
    )
    monkeypatch.setattr(verification, "supported_model_types", lambda: ("llava",))
    monkeypatch.setattr(verification, "_ATTENTIONS", ("sdpa",))
    few = [task for task in verification.TASKS if "prefill" in task.name]
    monkeypatch.setattr(verification, "TASKS", few)
    monkeypatch.setattr(doctor, "examine", examined)
    result = clasp("doctor", "--verify", *(["--json"] if as_json else []))
    assert result.exit_code == 1
    if as_json:
        assert json.loads(result.stdout)["verification"]["passed"] is False
    else:
        assert "llava, prefill, one prompt, sdpa: differs by" in result.stdout
        assert "4 of 5 checks failed with transformers" in result.stdout
        assert "FAILED" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("--model", "somewhere"), 2, "--model needs --verify"),
        (("--device", "cpu"), 2, "--device needs --verify"),
        (("--verify", "--device", "cuda:77"), 1, "--device cuda:77 cannot be used here"),
        (
            ("--verify", "--model", "no/such-model"),
            1,
            "--model no/such-model cannot be loaded as an image-text model",
        ),
    ],
)
def test_doctor_refuses_in_words(arguments, exit_code, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(doctor, "examine", examined)
    result = clasp("doctor", *arguments)
    assert result.exit_code == exit_code
    assert said in message(result)
    assert "Traceback" not in result.output


def test_doctor_refuses_a_model_of_another_family(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "examine", examined)
    config = transformers.VipLlavaConfig(
        text_config={"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
                     "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 64},
        vision_config={"model_type": "clip_vision_model", "hidden_size": 8,
                       "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8},
    )  # fmt: skip
    transformers.VipLlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    result = clasp("doctor", "--verify", "--model", tmp_path)
    assert result.exit_code == 1
    assert "cannot be pruned: its model_type must be 'llava' or" in message(result)
    assert "got 'vipllava'" in message(result)


def test_auto_prefers_a_gpu(monkeypatch):
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert pick_device("auto") == device


def test_images_are_turned_upright(tmp_path):
    image = Image.new("RGB", (30, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    image.save(tmp_path / "side.jpg", exif=exif)
    assert load_image(tmp_path / "side.jpg").size == (10, 30)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_greys_keep_their_brightness(tmp_path, dtype):
    greys = np.arange(256, dtype=dtype).reshape(16, 16)
    Image.fromarray(greys * np.array(257, dtype)).save(tmp_path / "deep.tiff")
    shown = np.asarray(load_image(tmp_path / "deep.tiff"))
    assert (shown == greys[..., None]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image.convert(mode).save(tmp_path / "clear.png")
    shown = load_image(tmp_path / "clear.png")
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_a_large_picture_is_no_reason_to_warn(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    Image.new("L", (10, 10)).save(tmp_path / "large.png")
    assert load_image(tmp_path / "large.png").size == (10, 10)
    assert not recwarn.list


def test_numbers_a_person_can_read():
    assert [report.size(n) for n in (0, 999, 1_000, 119_808, 3_210_000)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "120 kB",
        "3.21 MB",
    ]
    assert [report.size(n) for n in (99_999, 999_499, 999_500, 999_999_999, 2e15)] == [
        "100.00 kB",
        "999 kB",
        "1.00 MB",
        "1.00 GB",
        "2000 TB",
    ]
    assert [report.duration(s) for s in (0, 0.0009949, 0.0009951, 0.99994, 0.99996)] == [
        "0.00 ms",
        "0.99 ms",
        "1.0 ms",
        "999.9 ms",
        "1.00 s",
    ]
    assert report.change(100, 100) == "0 %"
    assert report.change(144, 16) == "-89 %"


def test_the_bundled_model_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in tiny_vlm_path().iterdir()}
    assert sum(files.values()) <= 8e6
    assert Profile.load(tiny_vlm_path() / "clasp_profile.json").model_type == "llava"
