"""A first run file, written by answers on a terminal or by options; and what the shell completes."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from clipdistill import run_file
from clipdistill.bench import students
from clipdistill.bench.students import Student
from clipdistill.cli import main
from clipdistill.config import RunConfig, load_run
from drawn_pictures import draw_pictures

CLI = [sys.executable, "-m", "clipdistill"]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned pictures for training and testing."""
    desk = tmp_path_factory.mktemp("desk")
    for name, uri in (("train", "scenes:train?n=12"), ("test", "scenes:test?n=4")):
        draw_pictures(desk / name, uri)
    return desk


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the pictures to train on, those to test on beside them."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    return tmp_path / "train"


class Terminal:
    """A program on a terminal of its own: what it prints is awaited, what is typed is sent."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.seen = ""
        environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ "}
        self.end, other = pty.openpty()
        # The terminal becomes that of the new session, so that Ctrl-C reaches the program.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *words],
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=folder,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        os.close(other)

    def awaits(self, pattern: str) -> str:
        """Everything printed since the last call, up to what matches."""
        while not (match := re.search(pattern, self.seen)):
            assert self.reads(), f"{pattern} did not come: {self.seen}"
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before

    def interrupt(self, pattern: str) -> None:
        """Press Ctrl-C until what matches is printed: pressed just before Python begins to read, it would be lost."""
        while not re.search(pattern, self.seen):
            self.types("\x03")
            while not re.search(pattern, self.seen) and select.select([self.end], [], [], 2)[0]:
                assert self.reads(), f"{pattern} did not come: {self.seen}"

    def reads(self) -> bool:
        """Wait for more, a minute at most; False where the program has ended."""
        ready, _, _ = select.select([self.end], [], [], 60)
        assert ready, f"nothing more came: {self.seen}"
        try:
            more = os.read(self.end, 65536).decode()
        except OSError:  # how Linux says that nobody is at the other end
            return False
        self.seen += more
        return bool(more)

    def types(self, text: str) -> None:
        """Type something."""
        os.write(self.end, text.encode())

    def status(self) -> int:
        """The exit status, once it has ended."""
        while self.reads():
            pass
        os.close(self.end)
        return self.process.wait(timeout=60)


def commented_keys(text: str) -> list[tuple[str, dict[str, object]]]:
    """The section and the key of each commented line that is a key."""
    section, found = "", []
    for line in text.splitlines():
        if match := re.match(r"(\w+):", line):
            section = match[1]
        if match := re.match(r"( *)# ([a-z_]+: .*)", line):
            found.append((section if match[1] else "", yaml.safe_load(match[2])))
    return found


def test_three_answers_on_a_terminal(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    terminal = Terminal([*CLI, "init"], tmp_path)
    terminal.awaits("Pictures to train on.*: ")
    terminal.types("trian\n")
    assert "Did you mean train?" in terminal.awaits("Pictures to train on.*: ")
    terminal.types("train\n")
    assert "12 pictures, captions" in terminal.awaits(r"Teacher .*\[openai/clip-vit-base-patch32\]: ")
    terminal.types("train\n")
    assert "holds no model" in terminal.awaits("Teacher .*: ")
    terminal.types("model\n")
    terminal.awaits(r"Student .*\[vit-tiny-16\]: ")
    terminal.types("\n")
    assert "clipdistill distill run.yaml" in terminal.awaits("clipdistill distill run.yaml")
    assert terminal.status() == 0
    run = load_run(tmp_path / "run.yaml")
    assert (run.data, run.teachers, run.student.preset) == ("train", {"T": "model"}, "vit-tiny-16")
    assert (run.recipe, run.out, run.evaluate.retrieval) == ("best", "runs/run", "test")


def test_ctrl_c_writes_nothing(photos: Path, tmp_path: Path) -> None:
    terminal = Terminal([*CLI, "init"], tmp_path)
    terminal.awaits("Pictures to train on.*: ")
    terminal.interrupt("stopped")
    assert terminal.status() == 130
    assert not (tmp_path / "run.yaml").exists()


@pytest.mark.parametrize("teacher", ["none", "org/model"])
def test_options_answer_without_a_terminal(
    photos: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made" / "tiny.yaml"
    words = ["init", str(file), "--data", str(photos), "--teacher", teacher, "--student", "vit-small-32"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert ("nothing is distilled" in said) == (teacher == "none")
    text = file.read_text(encoding="utf-8")
    run = load_run(file)
    assert run.teachers == ({} if teacher == "none" else {"T": teacher})
    assert run.recipe == ("clip" if teacher == "none" else "best")
    assert run.evaluate.retrieval == str(photos.parent / "test")
    assert run.train.plan(12).steps >= 100
    assert main(words) == 1
    assert "is there already" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == text


def test_every_commented_key_exists_and_shows_its_default(photos: Path, tmp_path: Path) -> None:
    pictures, alone = run_file.look_at(str(photos)), run_file.look_at("scenes:train?n=12")
    for number, (seen, teacher) in enumerate([(pictures, None), (alone, "org/model")]):
        file = tmp_path / f"{number}.yaml"
        run_file.write_run(file, seen, teacher, "vit-tiny-16")
        text = file.read_text(encoding="utf-8")
        keys = commented_keys(text)
        assert len(keys) > 10
        plain = load_run(file)
        for section, key in keys:
            ((name, value),) = key.items()
            changed = yaml.safe_load(text)
            (changed.setdefault(section, {}) if section else changed)[name] = value
            again = RunConfig.model_validate(changed)
            assert again.student.shape() == plain.student.shape(), name
            assert again.model_copy(update={"student": plain.student}) == plain, name


def test_pictures_alone_keep_the_teachers_text_tower(photos: Path, tmp_path: Path) -> None:
    (photos / "metadata.jsonl").unlink()
    words = ["init", str(tmp_path / "a.yaml"), "--data", str(photos), "--student", "vit-tiny-16"]
    assert main([*words, "--teacher", "none"]) == 1
    assert main([*words, "--teacher", "org/model"]) == 0
    run = load_run(tmp_path / "a.yaml")
    assert run.data == f"{photos}?caption=none", "names such as 1.png are no captions"
    assert (run.student.keep, run.student.freeze) == ("text", "text")
    assert run.recipe == [{"feature": "SI>TI", "metric": "l2"}]


def test_a_student_is_found_by_its_speed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(target: float) -> list[Student]:
        sizes = {
            "vit-tiny-16": (5, 8.0),
            "vit-small-16": (22, 19.0),
            "vit-base-16": (86, 60.0),
            "vit-tiny-cifar": (99, 1),
        }
        return [
            Student(name, size, 1, times={"image": {"p50": took}, "text": {"p50": 1.0}})
            for name, (size, took) in sizes.items()
        ]

    monkeypatch.setattr(students, "students", measured)
    words = ["init", str(tmp_path / "a.yaml"), "--data", str(photos), "--teacher", "org/model"]
    assert main([*words, "--student", "20 ms"]) == 0
    assert load_run(tmp_path / "a.yaml").student.preset == "vit-small-16"
    words[1] = str(tmp_path / "b.yaml")
    assert main([*words, "--student", "0.5ms"]) == 1
    assert "students --target-ms 0.5" in capsys.readouterr().err


def test_answers_that_make_no_run_write_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("a\nb\n")
    file, train = str(tmp_path / "x.yaml"), str(photos)
    answers = {"--data": train, "--teacher": "none", "--student": "vit-tiny-16"}
    for changed, message in [
        ({"--data": "nowhere"}, "no such file or folder"),
        ({"--data": str(tmp_path / "words.txt")}, "captions without pictures"),
        ({"--teacher": "no/such/folder"}, "no model folder"),
        ({"--student": "vit-tniy-16"}, "Did you mean 'vit-tiny-16'"),
        ({"--student": "vit-tiny-cifar"}, "has no text tower"),
    ]:
        assert main(["init", file, *(word for pair in (answers | changed).items() for word in pair)]) == 1
        assert message in capsys.readouterr().err
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        assert main(["init", file, "--data", train]) == 1
    assert "--teacher is missing, and there is no terminal" in capsys.readouterr().err
    assert not Path(file).exists()


# completion


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What is offered for the last of some words, as bash cuts them, or as zsh and fish hand them over."""

    def ask(words: list[str], shell: str = "bash") -> list[str]:
        monkeypatch.setenv("_CLIPDISTILL_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(words))
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        assert main([]) == 0
        return capsys.readouterr().out.splitlines()

    return ask


def test_names_are_completed(completed: Callable[..., list[str]]) -> None:
    assert completed(["clipdistill", "disti"]) == ["distill"]
    assert completed(["clipdistill", "recipes", "show", "motis"]) == ["motis-2", "motis"]
    assert completed(["clipdistill", "bench", "lat"]) == ["latency"]
    assert completed(["clipdistill", "distill", "recipe", "=", "mot"]) == ["motis-2", "motis"]
    assert "vit-tiny-16" in completed(["clipdistill", "plan", "run.yaml", "student.preset", "="])
    assert completed(["clipdistill", "distill", "run.y"]) == []
    assert completed(["clipdistill", "distill", "recipe=clip-kd-a"], "fish") == [
        "recipe=clip-kd-afd",
        "recipe=clip-kd-all",
    ]
    assert '"recipe=clip-kd-all"' in "".join(completed(["clipdistill", "distill", "recipe=clip-kd-al"], "zsh"))


def test_completion_imports_no_torch() -> None:
    program = (
        "import sys; from clipdistill.cli import completion as c; c.recipes(''); c.presets(''); c.benchmarks('')\n"
        "assert c.overrides('recipe=clip-kd-al') == ['recipe=clip-kd-all']; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "transformers", "jaxtyping"}


def test_bash_completes_as_one_types(tmp_path: Path) -> None:
    bash = Terminal(["bash", "--norc", "--noprofile", "-i"], tmp_path)
    bash.types('eval "$(clipdistill --show-completion bash)"; bind "set enable-bracketed-paste off"; echo rea"dy"\n')
    bash.awaits("ready\\r?\\n")
    bash.types("clipdistill recipes check motis-\t\n")
    assert "motis-2: 3 terms" in bash.awaits("needs teachers.T")
    bash.types("clipdistill distill recipe=chin\t")
    bash.awaits("recipe=chinese-clip-kd")
    bash.types("\x15exit\n")  # Ctrl-U takes the line back
    bash.status()


@pytest.mark.parametrize(
    ("shell", "file"),
    [
        ("bash", ".bash_completions/clipdistill.sh"),
        ("zsh", ".zfunc/_clipdistill"),
        ("fish", ".config/fish/completions/clipdistill.fish"),
    ],
)
def test_completion_is_installed(
    shell: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1"
    )  # it would be that of whoever runs the tests
    assert main(["--install-completion", shell]) == 0
    capsys.readouterr()
    assert main(["--show-completion", shell]) == 0
    script = capsys.readouterr().out
    assert (tmp_path / file).read_text().strip() == script.strip()
    assert f"complete_{shell}" in script
