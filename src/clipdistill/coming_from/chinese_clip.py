"""Chinese-CLIP's training command, cn_clip/training/main.py, read as a run: its flags become keys, or are told why not.

Three fates: a flag that means something here is mapped, one that changes no result here is named with the reason, one
that would change the result and cannot be honoured is an error that says what to write instead.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdistill.coming_from.chinese_clip_flags import IDLE, REFUSED, Flags, read_flags
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, did_you_mean
from clipdistill.models import chinese_clip
from clipdistill.models.hub import checkpoint_file, model_folder
from clipdistill.models.huggingface import FAMILIES, read_config
from clipdistill.training.run_folder import CONFIG

#: Pixels, patch, layers and width of the picture towers; None: no Hugging Face folder has it.
VISION = {
    "ViT-B-32": (224, 32, 12, 768),
    "ViT-B-16": (224, 16, 12, 768),
    "ViT-L-14": (224, 14, 24, 1024),
    "ViT-L-14-336": (336, 14, 24, 1024),
    "ViT-H-14": (224, 14, 32, 1280),
    "RN50": None,
}
#: Layers and width of the text towers.
TEXT = {
    "RoBERTa-wwm-ext-base-chinese": (12, 768),
    "RoBERTa-wwm-ext-large-chinese": (24, 1024),
    "RBT3-chinese": (3, 768),
}
#: Teachers of their documentation that have a Hugging Face folder.
_ON_THE_HUB = {
    "damo/multi-modal_clip-vit-huge-patch14_zh": "OFA-Sys/chinese-clip-vit-huge-patch14",
    "damo/multi-modal_clip-vit-large-patch14_zh": "OFA-Sys/chinese-clip-vit-large-patch14",
}
_MODELSCOPE = ("damo", "iic")


@dataclass(frozen=True)
class Translation:
    """A run as ``key=value`` overrides of ``clipdistill distill``, with one line on every flag that needs a word."""

    overrides: list[str]
    remarks: list[str]

    @property
    def command(self) -> str:
        """The equivalent native command, to be pasted into a shell."""
        return shlex.join(["clipdistill", "distill", *self.overrides])


def translate(words: Sequence[str], processes: int = 1) -> Translation:
    """Read Chinese-CLIP's flags, and ``key=value`` overrides among them, as a run; the overrides win.

    --batch-size is that of each of so many ``processes``, as there.

    Raises:
        ConfigError: a flag is unknown, its value does not fit, or it would change the result and cannot be honoured.
        DataError: --train-data cannot be opened.
    """
    flags, overrides = read_flags(words)
    for name, instead in REFUSED.items():
        if name in flags:
            raise ConfigError(f"--{name}: {instead}")
    _check_student(flags, overrides)
    remarks = [f"--{name} has no effect: {reason}" for name, (_, reason) in IDLE.items() if name in flags]
    keys = [
        *_models(flags, remarks),
        *_length(flags, processes, remarks),
        *_optimisation(flags, remarks),
        *_folder(flags),
    ]
    translation = Translation([*keys, *overrides], remarks)
    _check_out(translation, flags, overrides)
    return translation


def _check_student(flags: Flags, overrides: Sequence[str]) -> None:
    """Refuse what is no model folder, and one that is not the model the flags describe."""
    _among("vision-model", flags, VISION)
    _among("text-model", flags, TEXT)
    uri = flags["resume"]
    if uri is None:
        if any(word.startswith("student.") for word in overrides):
            return
        raise ConfigError(
            "--resume is missing: name the student to fine-tune, a Hugging Face folder or name such as "
            "--resume=OFA-Sys/chinese-clip-vit-base-patch16, or describe a new one, as student.preset=vit-tiny-16."
        )
    checkpoint_file(uri)  # if it is one, it must be there
    if {"vision-model", "text-model", "context-length"} & set(flags.given):
        _check_towers(flags, uri)


def _among(name: str, flags: Flags, known: dict[str, Any]) -> None:
    if name in flags and flags[name] not in known:
        raise ConfigError(f"--{name}: '{flags[name]}' is unknown.{did_you_mean(flags[name], known)}")


def _check_towers(flags: Flags, uri: str) -> None:
    if file := checkpoint_file(uri):
        family, config = FAMILIES["chinese_clip"], chinese_clip.read_config(file)
    else:
        family, config = read_config(model_folder(uri, weights=False))
    vision, text = config.vision_config, config.text_config
    shape = ("image_size", "patch_size", "num_hidden_layers", "hidden_size")
    found = tuple(getattr(vision, key, None) for key in shape)
    if "vision-model" in flags and VISION[flags["vision-model"]] != found:
        _mismatch("vision-model", flags, VISION[flags["vision-model"]], uri, found, "pixels, patch, layers, width")
    found = (text.num_hidden_layers, text.hidden_size)
    if "text-model" in flags and TEXT[flags["text-model"]] != found:
        _mismatch("text-model", flags, TEXT[flags["text-model"]], uri, found, "layers, width")
    longest = family.longest or text.max_position_embeddings
    if "context-length" in flags and flags["context-length"] != longest:
        raise ConfigError(
            f"--context-length {flags['context-length']}: the student {uri} reads {longest} tokens, and a model that "
            "is fine-tuned keeps its length. Leave the flag out."
        )


def _mismatch(name: str, flags: Flags, expected: Any, uri: str, found: Any, what: str) -> None:
    raise ConfigError(
        f"--{name} {flags[name]} is {expected or 'in no Hugging Face folder'} and the student {uri} is {found} "
        f"({what}). Leave the flag out, or name the folder that it describes as --resume."
    )


def _models(flags: Flags, remarks: list[str]) -> Iterator[str]:
    """The recipe, the teacher and the student."""
    image = "SI@masked" if flags["mask-ratio"] else "SI"
    terms = [f"{{contrast: {image}-ST, name: task}}"]
    teacher, weight = None, flags["kd-loss-weight"]
    if "distillation" in flags:
        teacher = _teacher(flags["teacher-model-name"], remarks)
        terms.append(f"{{feature: {image}>TI, metric: cosine, weight: {weight:g}, name: image_cosine}}")
        remarks.append("--distillation: other widths meet by a learned linear map; their rule is adapter: interpolate")
    else:
        idle = [name for name in ("teacher-model-name", "kd-loss-weight") if name in flags]
        remarks += [f"--{name} has no effect: there is no --distillation" for name in idle]
    usual = "chinese-clip-kd" if teacher else "clip"
    plain = image == "SI" and (weight == 0.5 or not teacher)
    yield f"recipe={usual}" if plain else f"recipe=[{', '.join(terms)}]"
    if flags["mask-ratio"]:
        yield f"train.mask_ratio={flags['mask-ratio']:g}"
    if teacher:
        yield f"teachers.T={teacher}"
    if flags["resume"]:
        yield f"student.pretrained={flags['resume']}"
    if "freeze-vision" in flags:
        yield "student.freeze=image"


def _teacher(name: str | None, remarks: list[str]) -> str:
    if name is None:
        raise ConfigError("--distillation needs --teacher-model-name=MODEL, a folder or a name.")
    if name.split("/")[0] in _MODELSCOPE and not Path(name).is_dir():
        same = f"; the same model is {_ON_THE_HUB[name]} on Hugging Face" if name in _ON_THE_HUB else ""
        remarks.append(f"--teacher-model-name: {name} is taken from ModelScope{same}")
        return f"ms:{name}"
    return name


def _length(flags: Flags, processes: int, remarks: list[str]) -> Iterator[str]:
    """The data, and how long to train: their epochs count pairs, so everything is told in steps."""
    if flags["train-data"] is None:
        raise ConfigError("--train-data is missing: name the data to train on, for instance --train-data=photos/train.")
    for name in ("batch-size", "accum-freq", "max-epochs"):
        if flags[name] < 1:
            raise ConfigError(f"--{name}: expected a number above 0, found {flags[name]}.")
    source = pairs(flags["train-data"])
    counts = [len(source[index].captions) for index in range(len(source))]
    epoch = max(1, math.ceil(sum(counts) / (processes * flags["batch-size"])) // flags["accum-freq"])
    rows = processes * flags["batch-size"] * flags["accum-freq"]
    yield f"data={flags['train-data']}"
    if without := counts.count(0):
        remarks.append(f"--train-data: {without} pictures have no text and are skipped")
        yield f"train.max_broken={100 + without}"
    steps = flags["max-steps"] or flags["max-epochs"] * epoch
    if flags["max-steps"] and "max-epochs" in flags:
        remarks.append("--max-epochs has no effect: --max-steps decides")
    if not flags["max-steps"]:
        told = f"{flags['max-epochs']} passes over {sum(counts)} pairs are {steps} steps of {rows}"
        several = "; a picture with several texts is one sample, with one of them drawn anew" if max(counts) > 1 else ""
        remarks.append(f"--max-epochs: {told}{several}")
    yield f"train.steps={steps}"
    remarks.append(_batch(rows, processes))
    if flags["accum-freq"] > 1:
        remarks.append("--accum-freq: compared as there, all with all, in one batch that must fit into memory")
    yield f"train.batch_size={rows}"
    saves = [n for n in (flags["save-step-frequency"] or 0, flags["save-epoch-frequency"] * epoch) if n > 0]
    if saves:
        yield f"train.checkpoint_every={min(saves)}"
    yield from _validation(flags, remarks, epoch)


def _batch(rows: int, processes: int) -> str:
    if processes > 1:
        return f"--batch-size is that of each of {processes} processes, as there: {rows} together"
    return (
        f"--batch-size: {rows} is the whole batch, for this is one process. A line that ran on N GPUs there asks for "
        "torchrun --nproc-per-node N -m clipdistill chinese-clip ..., or for N times the --batch-size"
    )


def _validation(flags: Flags, remarks: list[str], epoch: int) -> Iterator[str]:
    if flags["val-data"] is None:
        idle = [name for name in ("valid-epoch-interval", "valid-step-interval") if name in flags]
        remarks += [f"--{name} has no effect: there is no --val-data" for name in idle]
        return
    yield f"evaluate.retrieval={flags['val-data']}"
    by_step = max(flags["valid-step-interval"] or 0, 0)
    every = by_step or flags["valid-epoch-interval"] * epoch
    if by_step and "valid-epoch-interval" in flags:
        remarks.append("--valid-epoch-interval has no effect: --valid-step-interval decides")
    if every > 0:
        yield f"evaluate.every={every}"


def _optimisation(flags: Flags, remarks: list[str]) -> Iterator[str]:
    if flags["precision"] not in ("amp", "fp32"):
        raise ConfigError(
            f"--precision {flags['precision']}: expected amp or fp32. Weights are kept in float32 here; amp computes "
            "in bfloat16 where that is faster (train.precision=bfloat16: always)."
        )
    # Without augmentation they show every picture whole; a box of the whole area that fits is the whole picture.
    yield from ("augment.crop=[1,1]", "augment.ratio=[0.001,1000]")
    yield from ("train.optimizer=adamw", "train.schedule=cosine")
    yield f"train.lr={flags.rate:g}"
    yield f"train.weight_decay={flags['wd']:g}"
    yield f"train.warmup={flags['warmup']}"
    yield "train.clip_norm=null"
    if "beta1" in flags or "beta2" in flags:
        yield f"train.betas=[{flags.given.get('beta1', 0.9):g},{flags.given.get('beta2', 0.98):g}]"
    if "eps" in flags:
        yield f"train.eps={flags['eps']:g}"
    if flags["precision"] == "fp32":
        yield "train.precision=float32"
    if "num-workers" in flags:
        yield f"train.workers={flags['num-workers']}"
    if "log-interval" in flags:
        yield f"train.log_every={flags['log-interval']}"


def _folder(flags: Flags) -> Iterator[str]:
    if flags["logs"].lower() == "none":
        raise ConfigError("--logs None: a run always writes a folder. Name one.")
    yield f"seed={flags['seed']}"
    yield f"out={Path(flags['logs']) / flags['name']}"


def _check_out(translation: Translation, flags: Flags, overrides: Sequence[str]) -> None:
    """A run that was interrupted is gone on with by the native command, since --resume means the student here."""
    out = Path(flags["logs"]) / flags["name"]
    if (out / CONFIG).is_file() and not any(word.startswith("out=") for word in overrides):
        raise ConfigError(
            f"--logs and --name: there is a run in {out}. Give another --name, or go on with it: "
            f"{translation.command} --resume"
        )
