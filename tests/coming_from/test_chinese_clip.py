"""Chinese-CLIP's command line: every flag of theirs has one of three fates, and the run is the one it describes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from clipdistill.algebra.recipe import Recipe
from clipdistill.cli import main
from clipdistill.coming_from.chinese_clip import TEXT, VISION, translate
from clipdistill.coming_from.chinese_clip_flags import IDLE, MAPPED, REFUSED
from clipdistill.config import RunConfig, load_run
from clipdistill.data.samples import Base64Line
from clipdistill.data.sources import pairs
from clipdistill.data.views import Augmentation, draw
from clipdistill.errors import ConfigError, ModelError
from clipdistill.models.chinese_clip_layout import to_original
from clipdistill.training.loop import distill
from tiny_runs import TINY, tiny_run, write_chinese_clip

#: Every option of cn_clip/training/params.py, with an example of what follows it.
THEIRS = shlex.split("""
    --train-data=D --val-data=D --num-workers=2 --valid-num-workers=1 --logs=L --name=N --log-interval=1
    --report-training-batch-acc --batch-size=8 --valid-batch-size=8 --max-steps=3 --max-epochs=3
    --valid-step-interval=2 --valid-epoch-interval=1 --context-length=52 --lr=5e-5 --beta1=0.9 --beta2=0.98 --eps=1e-6
    --wd=0.001 --warmup=100 --use-bn-sync --use-augment --skip-scheduler --save-epoch-frequency=1
    --save-step-frequency=999999 --resume=R --reset-optimizer --reset-data-offset --precision=amp
    --vision-model=ViT-B-16 --mask-ratio=0.5 --clip-weight-path=W --freeze-vision
    --text-model=RoBERTa-wwm-ext-base-chinese --bert-weight-path=W --grad-checkpointing --use-flash-attention
    --accum-freq=1 --gather-with-grad --skip-aggregate --seed=123 --distllation --distillation --teacher-model-name=T
    --kd_loss_weight=0.5 --local_rank=0 --debug
""")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures with one Chinese text each; the first has a second one."""
    split = write_chinese_clip(tmp_path_factory.mktemp("data") / "MUGE" / "train", "scenes:train?n=24&lang=zh")
    with split.with_name("train_texts.jsonl").open("a") as file:
        file.write('{"text_id": 99, "text": "又一句", "image_ids": [0]}\n')
    return split


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, and a teacher of another width."""
    folder = tmp_path_factory.mktemp("models")
    short = {"steps": 2, "batch_size": 8}
    distill(tiny_run(folder / "small", data="scenes:train?n=24&lang=zh", train=short))
    wide = {**TINY, "width": 32, "embed_dim": 24}
    distill(tiny_run(folder / "large", data="scenes:train?n=24&lang=zh", student=wide, train=short))
    (folder / "small" / "student").rename(folder / "student")
    (folder / "large" / "student").rename(folder / "teacher")
    return folder


def run_of(split: Path, *words: str, student: str = "--resume=models/student") -> RunConfig:
    translation = translate([f"--train-data={split}", student, *words])
    return load_run(None, shlex.split(translation.command)[2:])


def refusal(split: Path, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        translate([f"--train-data={split}", *words])
    return str(caught.value)


def test_every_flag_of_theirs_is_known() -> None:
    names = {word.partition("=")[0].removeprefix("--").replace("_", "-") for word in THEIRS} - {"distllation"}
    assert names == set(MAPPED) | set(IDLE) | set(REFUSED)
    assert not set(MAPPED) & set(IDLE)


def test_the_sample_script_is_the_run_it_describes(split: Path) -> None:
    words = (
        f"--val-data={split} --resume=models/student --reset-data-offset --reset-optimizer --logs=experiments/ "
        "--name=muge --save-step-frequency=999999 --save-epoch-frequency=1 --log-interval=1 "
        "--report-training-batch-acc --warmup=100 --batch-size=8 --valid-batch-size=128 --valid-step-interval=150 "
        "--valid-epoch-interval=1 --accum-freq=1 --lr=5e-5 --wd=0.001 --max-epochs=3 --distillation "
        "--teacher-model-name=models/teacher"
    )
    run = run_of(split, *words.split())
    assert run.recipe == "chinese-clip-kd"
    assert run.teachers == {"T": "models/teacher"}
    assert (run.student.pretrained, run.data, run.out) == ("models/student", str(split), "experiments/muge")
    train = run.train
    assert train.steps == 3 * 4  # 25 pairs fill three batches of 8 and begin a fourth
    assert (train.batch_size, train.lr, train.weight_decay, train.clip_norm) == (8, 5e-5, 0.001, None)
    assert [str(train.warmup), str(train.log_every), str(train.checkpoint_every)] == ["100", "1", "4"]
    assert (run.evaluate.retrieval, str(run.evaluate.every), run.seed) == (str(split), "150", 123)


def test_their_defaults_hold_where_nothing_is_said(split: Path) -> None:
    run = run_of(split, "--batch-size=5")
    assert run.recipe == "clip"
    assert not run.teachers
    train = run.train
    assert (train.steps, train.lr, train.weight_decay, str(train.warmup)) == (32 * 5, 5e-4, 0.2, "500")
    assert (train.betas, train.eps, train.precision) == ((0.9, 0.98), 1e-6, "auto")
    assert (run.out, run.evaluate.retrieval, run.evaluate.every) == ("logs/train_clip", None, None)


@pytest.mark.parametrize("flag", ["--distllation", "--distillation"])
def test_both_spellings_and_a_weight_of_ones_own(split: Path, flag: str) -> None:
    run = run_of(split, flag, "--teacher-model-name", "models/teacher", "--kd_loss_weight", "0.3")
    terms, usual = Recipe.load(run.recipe).terms, Recipe.load("chinese-clip-kd").terms
    assert [term.weight for term in terms] == [1, 0.3]
    assert [(term.verb, term.arrows, term.metric, term.name) for term in terms] == [
        (term.verb, term.arrows, term.metric, term.name) for term in usual
    ]


def test_masked_pictures_are_what_both_losses_see(split: Path) -> None:
    run = run_of(split, "--mask-ratio=0.5", "--distillation", "--teacher-model-name=models/teacher")
    assert [str(node) for node in Recipe.load(run.recipe).nodes] == ["SI@masked", "ST", "TI"]
    assert run.train.mask_ratio == 0.5


def test_without_augmentation_every_picture_is_seen_whole(split: Path) -> None:
    augmentation = Augmentation(**run_of(split).augment.model_dump())
    for number, size in enumerate([(480, 31), (64, 64), (33, 100)]):
        assert draw(0, str(number), 1, augmentation, size).box == pytest.approx((0, 0, 1, 1))


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        ("--max-steps 7 --max-epochs 2", "train.steps", 7),
        ("--accum-freq 3 --batch-size 4", "train.batch_size", 12),
        ("--accum-freq 3 --batch-size 4 --max-epochs 2", "train.steps", 4),
        ("--val-data D --valid-epoch-interval 2 --batch-size 5", "evaluate.every", "10"),
        ("--val-data D --valid-epoch-interval -1", "evaluate.every", "None"),
        ("--save-step-frequency 2 --batch-size 5", "train.checkpoint_every", "2"),
        ("--precision fp32", "train.precision", "float32"),
        ("--beta1 0.8", "train.betas", (0.8, 0.98)),
        ("--beta1 0 --debug", "train.betas", (0, 0.98)),
        ("--lr 1e-3 train.lr=2e-3", "train.lr", 2e-3),
        ("--freeze-vision", "student.freeze", "image"),
    ],
)
def test_what_a_flag_becomes(split: Path, words: str, key: str, expected: Any) -> None:
    section, name = key.split(".")
    found = getattr(getattr(run_of(split, *words.split()), section), name)
    assert (str(found) if isinstance(expected, str) else found) == expected


@pytest.mark.parametrize("flag", sorted(IDLE))
def test_a_flag_without_effect_is_named_once_with_the_reason(split: Path, flag: str) -> None:
    kind, reason = IDLE[flag]
    word = f"--{flag}" if kind is bool else f"--{flag}=1"
    plain, given = (translate([f"--train-data={split}", "--resume=m", *extra]) for extra in ([], [word]))
    assert given.overrides == plain.overrides
    assert [line for line in given.remarks if line not in plain.remarks] == [f"--{flag} has no effect: {reason}"]


@pytest.mark.parametrize(
    ("words", "remark"),
    [
        ("--max-steps 7 --max-epochs 2", "--max-epochs has no effect: --max-steps decides"),
        ("--valid-step-interval 7", "--valid-step-interval has no effect: there is no --val-data"),
        ("--kd_loss_weight 1", "--kd-loss-weight has no effect: there is no --distillation"),
        ("--batch-size 5", "32 passes over 25 pairs are 160 steps of 5"),
        ("--accum-freq 2", "all with all, in one batch"),
        (
            "--distllation --teacher-model-name damo/multi-modal_clip-vit-huge-patch14_zh",
            "taken from ModelScope; the same model is OFA-Sys/chinese-clip-vit-huge-patch14 on Hugging Face",
        ),
    ],
)
def test_what_deserves_a_word_gets_a_line(split: Path, words: str, remark: str) -> None:
    remarks = translate([f"--train-data={split}", "--resume=m", *words.split()]).remarks
    assert sum(remark in line for line in remarks) == 1


def test_the_batch_is_that_of_each_process_as_there(split: Path) -> None:
    words = [f"--train-data={split}", "--resume=m", "--batch-size=3", "--accum-freq=2", "--max-epochs=4"]
    alone, four = translate(words), translate(words, processes=4)
    assert {"train.batch_size=6", "train.steps=16"} <= set(alone.overrides)  # 25 pairs: 9 batches, 4 updates
    assert {"train.batch_size=24", "train.steps=4"} <= set(four.overrides)  # 3 batches of all together, 1 update
    assert any("torchrun --nproc-per-node N" in line for line in alone.remarks)
    assert any("each of 4 processes, as there: 24 together" in line for line in four.remarks)


def test_pictures_without_a_text_are_told_and_allowed(tmp_path: Path) -> None:
    split = write_chinese_clip(tmp_path / "train", "scenes:train?n=12")
    lines = (tmp_path / "train_texts.jsonl").read_text().splitlines()
    (tmp_path / "train_texts.jsonl").write_text("\n".join(lines[2:]))
    translation = translate([f"--train-data={split}", "--resume=m"])
    assert any("2 pictures have no text" in line for line in translation.remarks)
    assert "train.max_broken=102" in translation.overrides


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--resume=m --use-augment", "--use-augment: AutoAugment is not drawn here. Leave it out and add augment.crop"),
        ("--resume=m --precision=fp16", "expected amp or fp32"),
        ("--resume=m --logs=None", "a run always writes a folder"),
        ("", "--resume is missing"),
        ("--resume=m --distllation", "needs --teacher-model-name"),
        (
            "--resume=m --kd_loss_wieght=1",
            "unknown flag '--kd_loss_wieght' of Chinese-CLIP. Did you mean 'kd-loss-weight'",
        ),
        ("--resume=m --vision-model=ViT-B-61", "'ViT-B-61' is unknown. Did you mean 'ViT-B-16'"),
        ("--resume=m --lr=fast", "--lr: expected a number, found 'fast'"),
        ("--resume=m --lr --wd=1", "--lr: expected a number, found nothing"),
        ("--resume=m --distillation=yes", "--distillation is a switch and takes no value"),
        ("--resume=m --batch-size=0", "--batch-size: expected a number above 0"),
        ("--resume=m photos", "'photos' is neither a flag"),
    ],
)
def test_what_cannot_be_honoured_says_what_to_do(split: Path, words: str, message: str) -> None:
    assert message in refusal(split, *words.split())


def test_train_data_must_be_said() -> None:
    with pytest.raises(ConfigError, match="--train-data is missing"):
        translate(["--resume=m"])


def test_flags_that_describe_the_student_are_held_against_it(split: Path, tmp_path: Path) -> None:
    pixels, patch, layers, width = VISION["ViT-L-14"]  # type: ignore[misc]
    text = dict(zip(("num_hidden_layers", "hidden_size"), TEXT["RBT3-chinese"], strict=True))
    vision = {"image_size": pixels, "patch_size": patch, "num_hidden_layers": layers, "hidden_size": width}
    vision["num_attention_heads"] = 16
    hf.ChineseCLIPConfig(text_config=text, vision_config=vision).save_pretrained(tmp_path)
    resume = f"--resume={tmp_path}"
    fitting = ["--vision-model=ViT-L-14", "--text-model=RBT3-chinese", "--context-length=52"]
    assert run_of(split, *fitting, student=resume).train.lr == 4e-4
    assert "(224, 14, 24, 1024) (pixels, patch" in refusal(split, resume, "--vision-model=ViT-L-14-336")
    assert "is in no Hugging Face folder" in refusal(split, resume, "--vision-model=RN50")
    assert "is (3, 768) (layers, width)" in refusal(split, resume, "--text-model=RoBERTa-wwm-ext-base-chinese")
    assert "reads 52 tokens" in refusal(split, resume, "--context-length=64")


def test_their_names_of_teachers_are_those_of_modelscope(split: Path, tmp_path: Path, monkeypatch: Any) -> None:
    name = "damo/multi-modal_rleg-vit-large-patch14"
    words = ["--distllation", f"--teacher-model-name={name}"]
    assert run_of(split, *words).teachers == {"T": f"ms:{name}"}
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert run_of(split, *words).teachers == {"T": name}


def test_a_checkpoint_of_theirs_is_held_against_the_flags(split: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip_cn_vit-b-16.pt"
    with pytest.raises(ModelError, match="no checkpoint at"):
        run_of(split, student=f"--resume={path}")
    towers = {"hidden_size": 768, "num_hidden_layers": 1}
    text = towers | {"vocab_size": 9, "intermediate_size": 32}
    config = hf.ChineseCLIPConfig(text_config=text, vision_config=towers | {"patch_size": 16})
    with torch.device("meta"):
        weights = hf.ChineseCLIPModel(config).state_dict()
    empty = {name: torch.zeros(()).expand(value.shape) for name, value in weights.items()}
    torch.save({"state_dict": to_original(empty)}, path)
    assert run_of(split, student=f"--resume={path}").student.pretrained == str(path)
    assert "(224, 16, 1, 768) (pixels, patch" in refusal(split, f"--resume={path}", "--vision-model=ViT-B-16")


def test_a_new_student_may_be_described_instead(split: Path) -> None:
    run = run_of(split, student="student.preset=vit-small-16")
    assert run.student.preset == "vit-small-16"


def test_the_whole_way_from_their_command_to_a_report(
    split: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = "scenes:zeroshot?n=24"
    words = [f"--train-data={split.parent}/lmdb/train", f"--val-data={split}", f"--resume={models}/student"]
    words += ["--distllation", f"--teacher-model-name={models}/teacher", "--kd_loss_weight=0.5", "--gather-with-grad"]
    words += ["--max-steps=3", "--batch-size=8", "--lr=5e-5", "--warmup=1", f"--logs={tmp_path}", "--name=tuned"]
    words += ["train.workers=0", "train.precision=float32", f"evaluate.image_retrieval={labelled}", "--num-workers=0"]
    assert main(["chinese-clip", *words]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("clipdistill distill recipe=chinese-clip-kd ")
    assert "--gather-with-grad has no effect: gradients are always those of the whole" in printed.err
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())
    for name in ("teacher", "student"):
        assert {"image_to_image_mAP", "text_to_image_R@1"} <= set(report["models"][name]["metrics"])
    assert "Image to image" in (tmp_path / "tuned" / "report.html").read_text(encoding="utf-8")

    assert main(["chinese-clip", *words]) == 1
    message = capsys.readouterr().err
    assert "there is a run in" in message
    assert main([*shlex.split(printed.out)[1:], "--resume"]) == 0  # a finished run resumed is a finished run


def test_their_pictures_stay_in_their_file(split: Path) -> None:
    source = pairs(split.parent / "lmdb" / "train")
    assert isinstance(source[0].image, Base64Line)
    assert len(source[0].captions) == 2
