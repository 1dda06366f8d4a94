"""The packages of the base install and of every extra: there, too old, or missing, and what they bring."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping

from packaging.requirements import Requirement

from clipdistill.machine.finding import Finding

BASE = "base install"
#: What an extra is for; one without a line here is told by its packages alone.
BRINGS = {
    "train": "training, embedding, evaluation and reports",
    "export": "ONNX graphs of a student that run without torch",
    "serve": "the search page and its HTTP interface",
    "milvus": "an index in a Milvus cluster",
    "openvino": "bfloat16 and int8 graphs through OpenVINO",
    "nncf": "int8 graphs quantised by NNCF for OpenVINO",
    "open-clip": "models of open_clip and timm",
    "data": "Hugging Face datasets, LMDB and data in object storage",
    "track": "TensorBoard",
    "wandb": "Weights & Biases",
    "trackio": "trackio",
    "mlflow": "MLflow",
}
#: Extras that join others, or that only developers need.
_LEFT_OUT = {"all", "dev"}
#: Packages that are imported by another name than they are installed by.
_MODULES = {"pillow": "PIL", "pyyaml": "yaml"}
_ABSENT = "is not installed"

Version = Callable[[str], str]


def look() -> list[Finding]:
    """Examine what is installed against what the package asks for; the base install is imported as well."""
    found = [Finding("ok", "python", f"{platform.python_version()}, {sys.executable}")]
    try:
        lines = importlib.metadata.requires("clipdistill") or []
    except importlib.metadata.PackageNotFoundError:
        return [
            Finding("warning", BASE, "clipdistill is not installed, it runs from a folder", "pip install -e FOLDER"),
            *found,
        ]
    return [base(lines), *found, *extras(lines)]


def base(lines: Iterable[str], version: Version = importlib.metadata.version) -> Finding:
    """Whether every package of the base install is there, new enough, and can be imported."""
    wanted = _wanted(lines, "")
    wrong = [reason for need in wanted.values() if (reason := _wrong(need, version) or _unusable(need.name))]
    if wrong:
        return Finding("missing", BASE, "; ".join(wrong), "pip install --upgrade --force-reinstall clipdistill")
    return Finding("ok", BASE, _versions(wanted, version))


def extras(lines: Iterable[str], version: Version = importlib.metadata.version) -> list[Finding]:
    """One finding for each extra, of the packages that it adds to the base install and to ``train``."""
    lines = list(lines)
    names = {name for line in lines for name in re.findall(r"""extra == ['"]([\w-]+)""", line)} - _LEFT_OUT
    order = list(BRINGS)
    base, train = _wanted(lines, ""), _wanted(lines, "train")
    found = []
    for extra in sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name)):
        known = base if extra == "train" else base | train
        if wanted := {name: need for name, need in _wanted(lines, extra).items() if name not in known}:
            found.append(_extra(extra, wanted, version))
    return found


def _extra(extra: str, wanted: Mapping[str, Requirement], version: Version) -> Finding:
    install = f"for {BRINGS.get(extra, extra)}: pip install 'clipdistill[{extra}]'"
    absent = [name for name, need in wanted.items() if _wrong(need, version).endswith(_ABSENT)]
    if absent:
        return Finding("missing", f"[{extra}]", f"{', '.join(absent)}", install)
    if old := [reason for need in wanted.values() if (reason := _wrong(need, version))]:
        return Finding("warning", f"[{extra}]", "; ".join(old), install.replace("install", "install --upgrade", 1))
    return Finding("ok", f"[{extra}]", _versions(wanted, version))


def _wanted(lines: Iterable[str], extra: str) -> dict[str, Requirement]:
    """What an extra, or with ``""`` the base install, asks for on this machine, by name."""
    needs = [need for need in map(Requirement, lines) if need.marker is None or need.marker.evaluate({"extra": extra})]
    base = {need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})}
    return {need.name: need for need in needs if need.name != "clipdistill" and (not extra or need.name not in base)}


def _wrong(need: Requirement, version: Version) -> str:
    """Why a package is not as asked for; empty where it is."""
    try:
        found = version(need.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{need.name} {_ABSENT}"
    fits = need.specifier.contains(found, prereleases=True)
    return "" if fits else f"{need.name} {found} is installed, {need.specifier} is expected"


def _unusable(name: str) -> str:
    """Why an installed package cannot be imported; empty where it can."""
    try:
        importlib.import_module(_MODULES.get(name.lower(), name.replace("-", "_")))
    except Exception as error:  # a library of the system that is missing, a file that is damaged: of any class
        return f"{name} is installed but cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
    return ""


def _versions(wanted: Mapping[str, Requirement], version: Version) -> str:
    return ", ".join(f"{name} {version(name)}" for name in wanted)
