"""What leaves the repository: one version, sources that the oldest Python reads, and images and workflows that fit."""

from __future__ import annotations

import ast
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tomllib
import yaml

import clipdistill
from clipdistill.cli import main

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = sorted((ROOT / "src").rglob("*.py"))
IMAGES = ["Dockerfile", "Dockerfile.train"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
#: Names of the standard library that Python 3.10 lacks, by module; method and argument names that it lacks anywhere.
NEW = {
    "asyncio": {"Barrier", "Runner", "TaskGroup", "timeout", "timeout_at"},
    "builtins": {"BaseExceptionGroup", "ExceptionGroup", "PythonFinalizationError"},
    "collections.abc": {"Buffer"},
    "contextlib": {"chdir"},
    "copy": {"replace"},
    "datetime": {"UTC"},
    "enum": {"EnumCheck", "FlagBoundary", "ReprEnum", "StrEnum", "global_enum", "member", "nonmember", "verify"},
    "hashlib": {"file_digest"},
    "inspect": {"BufferFlags", "getmembers_static", "markcoroutinefunction"},
    "itertools": {"batched"},
    "logging": {"getHandlerByName", "getHandlerNames", "getLevelNamesMapping"},
    "math": {"cbrt", "exp2", "fma", "sumprod"},
    "operator": {"call"},
    "os": {"listdrives", "process_cpu_count", "setns", "unshare"},
    "queue": {"ShutDown"},
    "random": {"binomialvariate"},
    "re": {"NOFLAG"},
    "sys": {"activate_stack_trampoline", "exception", "monitoring"},
    "threading": {"setprofile_all_threads", "settrace_all_threads"},
    "tomllib": {"load", "loads"},
    "types": {"get_original_bases"},
    "typing": {
        *("LiteralString", "Never", "NotRequired", "ReadOnly", "Required", "Self", "TypeAliasType", "TypeIs"),
        *("TypeVarTuple", "Unpack", "assert_never", "assert_type", "dataclass_transform", "override", "reveal_type"),
    },
    "warnings": {"deprecated"},
}
NEW_METHODS = {"add_note", "from_uri", "full_match", "is_junction", "with_segments"}
NEW_ARGUMENTS = {"case_sensitive", "delete_on_close", "onexc", "recurse_symlinks", "walk_up"}


def test_there_is_one_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    assert {PROJECT.get("version", clipdistill.__version__), cited} == {clipdistill.__version__}


def too_new(text: str) -> Iterator[str]:
    """What Python 3.10 would not understand, with its line; a :class:`SyntaxError` for syntax that it has not."""
    for node in ast.walk(ast.parse(text, feature_version=(3, 10))):
        if isinstance(node, ast.ImportFrom):
            yield from (
                f"{node.lineno}: {one.name}" for one in node.names if one.name in NEW.get(node.module or "", ())
            )
        elif isinstance(node, ast.Attribute):
            module = ast.unparse(node.value)
            if node.attr in NEW_METHODS or (node.attr in NEW.get(module, ()) and module != "builtins"):
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Name) and node.id in NEW["builtins"]:
            yield f"{node.lineno}: {node.id}"
        elif isinstance(node, ast.keyword) and node.arg in NEW_ARGUMENTS:
            yield f"{node.lineno}: {node.arg}="
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and node.slice.elts:
            first = node.slice.elts[0]  # where the tuple begins too, unless it has parentheses
            starred = any(isinstance(one, ast.Starred) for one in node.slice.elts)
            if starred and first.col_offset == node.slice.col_offset:
                yield f"{node.lineno}: a star in an index"


def test_the_oldest_python_reads_the_sources() -> None:
    assert PROJECT["requires-python"].startswith(">=3.10")
    assert len(FILES) > 300
    found = [f"{path.name}:{what}" for path in FILES for what in too_new(path.read_text(encoding="utf-8"))]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "from typing import Self",
        "import hashlib\nhashlib.file_digest",
        "raise ExceptionGroup('', [])",
        "a[*b]",
        "path.full_match('*')",
        "rmtree(path, onexc=print)",
    ],
)
def test_what_is_too_new_is_found(text: str) -> None:
    assert list(too_new(text))


def test_syntax_that_is_too_new_is_found() -> None:
    with pytest.raises(SyntaxError):
        list(too_new("try: pass\nexcept* ValueError: pass"))
    assert not list(too_new("a[(*b, 1)]\na[1, 2]\nself.timeout(1)"))


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile in order, each with what it is given, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def last_stage(name: str) -> dict[str, str]:
    """The instructions of the stage that becomes the image; of several of a kind the last."""
    found = instructions(name)
    begins = max(at for at, (word, _) in enumerate(found) if word == "FROM")
    return dict(found[begins:])


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_without_root_and_without_a_shell(name: str) -> None:
    stage = last_stage(name)
    assert stage["USER"] == "10001:10001"
    for word in ("ENTRYPOINT", "CMD"):
        assert all(isinstance(one, str) for one in json.loads(stage[word]))
    program, *words = [*json.loads(stage["ENTRYPOINT"]), *json.loads(stage["CMD"])]
    assert program == "clipdistill"
    assert main(words) == 0


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_made_of_what_is_there_and_pinned(name: str) -> None:
    found = instructions(name)
    given = [rest for word, rest in found if word == "ARG" and rest.startswith("BASE=")]
    version = ".".join(map(str, sys.version_info[:2]))  # the constraints are what this Python runs with
    assert given == [f"BASE=docker.io/library/python:{version}-slim-bookworm"]
    assert all(rest.split()[0] == "${BASE}" for word, rest in found if word == "FROM")
    assert not [rest for word, rest in found if word == "ADD"]
    assert all("--no-cache-dir" in rest for word, rest in found if word == "RUN" and re.search(r"\bpip\b", rest))
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    for rest in (rest for word, rest in found if word == "COPY" and "--from" not in rest):
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in let_in


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_asks_for_extras_that_there_are(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = re.findall(r'"\.\[([\w,-]+)\]"', text) or re.findall(r"^ARG EXTRAS=(\S+)", text, re.MULTILINE)
    assert len(named) == 1
    assert set(named[0].split(",")) <= set(PROJECT["optional-dependencies"])


class Server(http.server.BaseHTTPRequestHandler):
    """Answers /ready with a status, as ``clipdistill serve`` does."""

    status: ClassVar[int]

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/ready" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_the_health_check_asks_whether_the_server_is_ready(status: int | None, code: int) -> None:
    words = json.loads(last_stage("Dockerfile")["HEALTHCHECK"].partition(" CMD ")[2])
    handler = type("Answering", (Server,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        if status is None:
            server.shutdown()
            server.socket.close()
        command = [sys.executable, *(word.replace("8000", str(port)) for word in words[1:])]
        environment = {**os.environ, "http_proxy": "http://127.0.0.1:1"}
        assert subprocess.run(command, check=False, capture_output=True, env=environment).returncode == code
        if status is not None:
            server.shutdown()


def workflow(path: Path) -> dict[str, Any]:
    """A workflow; YAML 1.1 reads its key ``on`` as true."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        yield from ((f"{path.name}: {name}", job) for name, job in workflow(path)["jobs"].items())


def test_a_workflow_may_do_little() -> None:
    assert len(WORKFLOWS) >= 4
    assert all(workflow(path)["permissions"] == {"contents": "read"} for path in WORKFLOWS)
    more = {name: job["permissions"] for name, job in jobs() if "permissions" in job}
    publishing = {"release.yml: publish": {"id-token": "write"}}
    assert more == {**publishing, "docs.yml: publish": {"pages": "write", "id-token": "write"}}
    assert all("timeout-minutes" in job for _, job in jobs() if "uses" not in job)


def test_a_workflow_uses_released_actions() -> None:
    used = [step["uses"] for _, job in jobs() for step in job.get("steps", ()) if "uses" in step]
    used += [job["uses"] for _, job in jobs() if "uses" in job]
    for name in used:
        there = name.startswith("./") and (ROOT / name).is_file()
        assert there or re.fullmatch(r"[\w-]+/[\w/-]+@(v\d+|release/v\d+|[0-9a-f]{40})", name), name


def test_a_workflow_runs_what_there_is() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = "\n".join(step.get("run", "") for _, job in jobs() for step in job.get("steps", ()))
    targets = re.findall(r"^make (\S+)$", commands, re.MULTILINE)
    assert len(targets) >= 4
    known = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE)) | {".venv/.installed"}
    assert set(targets) <= known
    scripts = set(re.findall(r"\.ci/[\w.]+", commands))
    assert len(scripts) >= 3
    assert all((ROOT / script).is_file() for script in scripts)
    assert all(os.access(ROOT / ".ci" / name, os.X_OK) for name in ("run", "bundle", "wheels"))


def test_every_python_that_is_promised_is_tried() -> None:
    matrix = workflow(ROOT / ".github" / "workflows" / "package.yml")["jobs"]["search-only"]["strategy"]["matrix"]
    first, last = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups())
    assert matrix["python"] == [f"3.{minor}" for minor in range(first, last)]


def test_the_commands_of_the_scripts_are_read() -> None:
    """The words of every ``clipdistill`` line of ``.ci/bundle`` are options and verbs that there are."""
    text = (ROOT / ".ci" / "bundle").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("clipdistill ")]
    assert [words[1] for words in lines] == ["distill", "export"]
    assert all(main([words[1], *words[2:], "--help"]) == 0 for words in lines)
