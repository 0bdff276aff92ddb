"""Terminal handling of ``clasp``: encodings, sizes, and a stdout that cannot be written."""

import io
import json
import os
import subprocess
import sys

import pytest
from running import SCENE, clasp_process

from clasp_kernels.cli import main, terminal

FOREIGN = "¿Cuántos círculos?"


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Return a function that runs main() in this process and returns exit code, stdout, stderr."""

    def run(*arguments, encoding="utf-8", stdout=None):
        stdout = stdout or io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        stderr = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "argv", ["clasp", *arguments])
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(SystemExit) as exit_info:
            main()
        said = [
            stream.buffer.getvalue().decode(encoding)
            for stream in (stdout, stderr)
            if isinstance(stream.buffer, io.BytesIO)
        ]
        return exit_info.value.code, *said

    return run


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"\xbfCu\xe1ntos c\xedrculos?"),
        ("shift_jis", r"\xbfCu\xe1ntos c\xedrculos?"),
        ("latin-1", FOREIGN),
        ("cp1252", FOREIGN),
        ("utf-16", FOREIGN),
    ],
)
def test_a_terminal_shows_what_its_encoding_does_not_have_as_escapes(
    command, tmp_path, encoding, shown
):
    out = str(tmp_path / "map.png")
    code, stdout, stderr = command("ask", SCENE, FOREIGN, "--out", out, encoding=encoding)
    assert code == 0
    note = f"Note: stdout is {encoding}, and what that cannot show is printed as escapes; "
    assert stderr.startswith(note) if shown != FOREIGN else not stderr
    assert len(stderr.splitlines()) == (shown != FOREIGN)
    assert stdout.splitlines()[0] == shown
    assert "visual tokens" in stdout


@pytest.mark.parametrize("columns", ["0", "1", "-5", "abc", "²", "99999999999", ""])
def test_a_width_that_is_none_loses_nothing(command, tmp_path, monkeypatch, columns):
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        monkeypatch.setenv(name, columns)
    code, stdout, _ = command("--help")
    assert code == 0
    assert "Ask multimodal models" in stdout
    assert max(map(len, stdout.splitlines())) <= 80


def test_a_width_that_is_one_is_kept(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert max(map(len, command("--help")[1].splitlines())) == 120


@pytest.mark.parametrize(
    "arguments", [("--version",), ("--help",), ("ask", "--help"), ("doctor", "--json"), ("doctor",)]
)
def test_a_result_that_a_full_disk_refuses_is_an_error(command, monkeypatch, arguments):
    from clasp_kernels.cli import doctor

    monkeypatch.setattr(doctor, "examine", lambda: doctor.Examination({"packages": {"x": "1"}}, ()))
    with open("/dev/full", "w") as full:
        code, stderr = command(*arguments, stdout=full)
        assert code == 1
        said = "Error: the result cannot be written to stdout: No space left on device"
        assert " ".join(stderr.split()) == said
        with open(full.fileno(), closefd=False):  # now the null device, so flushing cannot fail
            full.flush()


def test_an_answer_that_a_full_disk_refuses_is_an_error(command, tmp_path):
    asked = ("ask", SCENE, "How many?", "--out", str(tmp_path / "m.png"), "--json")
    with open("/dev/full", "w") as full:
        code, stderr = command(*asked, stdout=full)
        with open(full.fileno(), closefd=False):
            full.flush()
    assert code == 1
    said = "Error: the result cannot be written to stdout: No space left on device\n"
    assert stderr == said
    with open("/dev/full", "w") as full:  # nor does the end of the process say more
        done = clasp_process("--version", stdout=full)
    assert (done.returncode, done.stderr.decode()) == (1, said)


def test_a_closed_stdout_is_an_error_before_any_work(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as exit_info:
        main()
    said = "Error: the result cannot be written to stdout: it is closed"
    assert exit_info.value.code == said


def test_a_reader_that_has_gone_is_no_news():
    reading, writing = os.pipe()
    os.close(reading)
    done = clasp_process("--help", stdout=writing)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == b""


# The command doctor, without what it starts other processes for.
DOCTOR = """
import sys
from clasp_kernels.cli import doctor, main
doctor.examine = lambda: doctor.Examination({}, ())
sys.argv = ["clasp", "doctor", "--json"]
main()
"""


def test_a_closed_stderr_loses_no_result():
    closing = {"preexec_fn": lambda: os.close(2), "stderr": None}
    # In whole: its processes are started without a stderr, too.
    done = clasp_process("doctor", "--json", **closing)
    assert done.returncode == 0
    assert json.loads(done.stdout)["usable"] is True
    assert clasp_process("ask", "none.png", "What?", **closing).returncode == 2


def test_a_full_stderr_loses_no_result():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", DOCTOR], stdout=subprocess.PIPE, stderr=full, timeout=120
        )
        assert done.returncode == 0
        assert json.loads(done.stdout)["usable"] is True
        assert clasp_process("ask", "none.png", "What?", stderr=full).returncode == 2


@pytest.mark.deep  # Python compiles torch and transformers without docstrings each time.
def test_without_docstrings_a_question_is_answered(tmp_path):
    out = str(tmp_path / "map.png")
    ask = ("ask", SCENE, "How many?", "--out", out, "--json")
    done = clasp_process(*ask, python=("-OO",))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["question"] == "How many?"


def test_without_docstrings_the_commands_have_their_help():
    for how in ({"python": ("-OO",)}, {"env": {"PYTHONOPTIMIZE": "2"}}):
        assert b"Answer a question" in clasp_process("ask", "--help", **how).stdout


def test_ctrl_c_ends_with_130_and_no_traceback(command, monkeypatch):
    from clasp_kernels.cli import doctor

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    code, stdout, stderr = command("doctor")
    assert (code, stdout) == (130, "")
    assert "Traceback" not in stderr
    # Interrupted before any command runs.
    monkeypatch.setattr(terminal, "_forget_impossible_sizes", interrupted)
    assert command("doctor")[0] == 130


def test_a_fault_of_ours_shows_its_traceback():
    code = (
        "import sys\n"
        "from clasp_kernels.cli import doctor, main\n"
        "doctor.examine = lambda: 1 / 0\n"
        "sys.argv = ['clasp', 'doctor']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_arguments_in_the_c_locale_are_read_as_utf_8(tmp_path):
    done = clasp_process(
        *("ask", SCENE, FOREIGN, "--out", str(tmp_path / "café.png"), "--json"),
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["question"] == FOREIGN
    assert (tmp_path / "café.png").exists()
