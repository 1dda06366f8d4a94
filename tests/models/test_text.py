"""Models of captions alone: the library's own states pooled as the folder says, and teachers of captions in a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from clipdistill.cli import main
from clipdistill.errors import ModelError
from clipdistill.models import hub
from clipdistill.models.loading import load
from clipdistill.teachers.store import EmbeddingStore
from clipdistill.training.loop import distill
from clipdistill.training.run_folder import read_log
from tiny_runs import TINY, tiny_run

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CAPTIONS = ["a red circle", "two large green squares left of a blue star, on white", "x"]
WORDS = sorted({*" ".join(CAPTIONS).replace(",", " ,").split(), "of", "the", *"abcdefghijklmnopqrstuvwxyz"})
SPECIAL = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>"}
SPECIAL |= {"pad_token": "<pad>"}


def word_pieces() -> Any:
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary = {word: number for number, word in enumerate(entries)}
    return hf.BertTokenizer(vocab=vocabulary, model_max_length=64)


def sentence_tokens() -> Any:
    """Words between <s> and </s>, with the padding id 1: as RoBERTa, XLM-R and MPNet number them."""
    entries = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(entries, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL, model_max_length=64)


def bert() -> tuple[Any, Any]:
    tokenizer = word_pieces()
    return hf.BertModel(hf.BertConfig(**SIZES, vocab_size=len(tokenizer), max_position_embeddings=40)), tokenizer


def with_pad_one(model: Any, config: Any, **more: Any) -> tuple[Any, Any]:
    tokenizer = sentence_tokens()
    sizes = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 22, "pad_token_id": 1}
    return model(config(**sizes, **more)), tokenizer


def t5() -> tuple[Any, Any]:
    tokenizer = sentence_tokens()
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "pad_token_id": 1}
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes, vocab_size=len(tokenizer))), tokenizer


def distil_bert() -> tuple[Any, Any]:
    tokenizer = word_pieces()
    sizes = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2}
    return hf.DistilBertModel(hf.DistilBertConfig(**sizes, vocab_size=len(tokenizer))), tokenizer


#: A model with its tokenizer, and how many tokens of a caption it reads.
FAMILIES: dict[str, tuple[Callable[[], tuple[Any, Any]], int]] = {
    "bert": (bert, 40),
    "distilbert": (distil_bert, 64),
    "roberta": (lambda: with_pad_one(hf.RobertaModel, hf.RobertaConfig), 20),
    "xlm-roberta": (lambda: with_pad_one(hf.XLMRobertaModel, hf.XLMRobertaConfig), 20),
    "mpnet": (lambda: with_pad_one(hf.MPNetModel, hf.MPNetConfig), 20),
    "t5": (t5, 64),
}


def write(folder: Path, made: tuple[Any, Any]) -> tuple[Any, Any]:
    """Save a model with weights large enough to tell captions apart, and its tokenizer; returns both."""
    torch.manual_seed(0)
    model, tokenizer = made
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def states(model: Any, tokenizer: Any, caption: str, length: int = 64) -> np.ndarray:
    """The last hidden states of one caption, which then has no padding: ``[L, W]``."""
    ids = tokenizer(caption, truncation=True, max_length=length, return_tensors="pt")["input_ids"]
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad():
        found: np.ndarray = encoder(input_ids=ids).last_hidden_state[0].numpy()
    return found


def rows(encoder: Any, captions: list[str] = CAPTIONS) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = encoder.texts(encoder.tokenize(captions)).numpy()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_folder_gives_the_mean_of_its_states(family: str, tmp_path: Path) -> None:
    make, longest = FAMILIES[family]
    model, tokenizer = write(tmp_path / "model", make())
    encoder = load(str(tmp_path / "model"))
    expected = np.stack([states(model, tokenizer, caption).mean(axis=0) for caption in CAPTIONS])
    found = rows(encoder)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-2
    assert (encoder.sides, encoder.width, encoder.classes, encoder.transform) == ("T", 32, (), None)
    assert (encoder.log_scale, encoder.bias, encoder.patch_tokens, encoder.scale) == (None, None, None, 1 / 0.07)
    assert not [name for name, _ in encoder.module.named_parameters() if "pooler" in name or "decoder" in name]
    assert encoder.tokenize(["a red circle " * 40])["input_ids"].shape == (1, longest)
    rows(encoder, ["a red circle " * 40])  # every position that is counted exists


@pytest.mark.parametrize("projected", [True, False])
def test_clips_text_tower_pools_at_the_end_token(
    projected: bool, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    whole = load(str(model_folders["clip"]))
    kind = hf.CLIPTextModelWithProjection if projected else hf.CLIPTextModel
    config = hf.CLIPConfig.from_pretrained(model_folders["clip"]).text_config
    config.projection_dim = whole.width
    kind.from_pretrained(model_folders["clip"], config=config).save_pretrained(tmp_path / "text")
    whole.tokenizer.save_pretrained(tmp_path / "text")
    encoder = load(str(tmp_path / "text"))
    expected = rows(whole)
    found = rows(encoder)
    if not projected:
        found = found @ whole.module.text_projection.weight.detach().numpy().T  # type: ignore[operator, union-attr]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    encoder.save(tmp_path / "copy")
    again = load(str(tmp_path / "copy"))
    assert (again.fingerprint, again.width) == (encoder.fingerprint, 24 if projected else 32)


POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cls_token": lambda found: found[0],
    "max_tokens": lambda found: found.max(axis=0),
    "mean_tokens": lambda found: found.mean(axis=0),
    "mean_sqrt_len_tokens": lambda found: found.sum(axis=0) / np.sqrt(len(found)),
}


def sentence_folder(folder: Path, pooling: list[str], dense: bool = False, **settings: Any) -> tuple[Any, Any]:
    """Write what sentence-transformers writes: its JSON files as published models have them."""
    root = settings.pop("root", "")
    made = write(folder / root, bert())
    parts = [("Transformer", root), ("Pooling", "1_Pooling")]
    modes = {f"pooling_mode_{name}": name in pooling for name in (*POOLED, "weightedmean_tokens", "lasttoken")}
    put(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **modes, "include_prompt": True})
    put(folder / root / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False, **settings})
    if dense:
        width = 32 * len(pooling)
        torch.manual_seed(1)
        weights = {"linear.weight": torch.randn(20, width) / 4, "linear.bias": torch.randn(20)}
        tanh = {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
        put(folder / "2_Dense" / "config.json", {"in_features": width, "out_features": 20, **tanh})
        save_file(weights, folder / "2_Dense" / "model.safetensors")
        (folder / "3_Normalize").mkdir()
        parts += [("Dense", "2_Dense"), ("Normalize", "3_Normalize")]
    modules = [
        {"name": str(n), "path": path, "type": f"sentence_transformers.models.{t}"} for n, (t, path) in enumerate(parts)
    ]
    put(folder / "modules.json", [{"idx": number, **part} for number, part in enumerate(modules)])
    return made


def put(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("pooling", [*([name] for name in POOLED), ["mean_tokens", "cls_token"]])
def test_sentence_models_pool_as_their_folder_says(pooling: list[str], tmp_path: Path) -> None:
    model, tokenizer = sentence_folder(tmp_path, pooling)
    encoder = load(str(tmp_path))
    order = [name for name in POOLED if name in pooling]
    expected = [np.concatenate([POOLED[name](states(model, tokenizer, c, 12)) for name in order]) for c in CAPTIONS]
    np.testing.assert_allclose(rows(encoder), np.stack(expected), atol=2e-5, rtol=1e-4)
    assert encoder.width == 32 * len(pooling)
    assert encoder.tokenize(["a red circle " * 9])["input_ids"].shape == (1, 12)


@pytest.mark.parametrize("root", ["", "0_Transformer"])
def test_what_follows_the_pooling_is_done_and_saved(root: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model, tokenizer = sentence_folder(folder, ["mean_tokens"], dense=True, root=root)
    encoder = load(str(folder))
    torch.manual_seed(1)
    kernel, bias = (torch.randn(20, 32) / 4).numpy(), torch.randn(20).numpy()
    expected = np.stack([np.tanh(kernel @ states(model, tokenizer, c, 12).mean(axis=0) + bias) for c in CAPTIONS])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(rows(encoder), expected, atol=1e-5)
    encoder.save(tmp_path / "copy", {"licence": "mit"})
    again = load(str(tmp_path / "copy"))
    assert again.fingerprint == encoder.fingerprint
    assert np.array_equal(rows(again), rows(encoder))
    parts = json.loads((tmp_path / "copy" / "modules.json").read_text())
    assert [part["path"] for part in parts] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    assert parts[2]["type"] == "sentence_transformers.models.Dense"
    assert type(hf.AutoModel.from_pretrained(tmp_path / "copy")) is hf.BertModel
    for path, change in (("2_Dense", {"activation_function": "torch.nn.ReLU"}), ("", {"hidden_act": "relu"})):
        file = tmp_path / "copy" / path / "config.json"
        put(file, {**json.loads(file.read_text()), **change})
        other = load(str(tmp_path / "copy"))
        assert other.fingerprint != again.fingerprint
        again = other


def test_prompt_and_case_are_the_folders(tmp_path: Path) -> None:
    model, tokenizer = sentence_folder(tmp_path, ["mean_tokens"], do_lower_case=True)
    put(tmp_path / "config_sentence_transformers.json", {"prompts": {"q": "the "}, "default_prompt_name": "q"})
    encoder = load(str(tmp_path))
    expected = states(model, tokenizer, "the a red circle").mean(axis=0)
    np.testing.assert_allclose(rows(encoder, ["A RED Circle"])[0], expected, atol=2e-5, rtol=1e-4)
    encoder.save(tmp_path / "copy")
    assert load(str(tmp_path / "copy")).fingerprint == encoder.fingerprint
    settings = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    put(tmp_path / "1_Pooling" / "config.json", {**settings, "include_prompt": False})
    with pytest.raises(ModelError, match="pools without the tokens of its prompt 'the '"):
        load(str(tmp_path))


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_the_older_names_of_length_and_case_are_read(kind: str, tmp_path: Path) -> None:
    sentence_folder(tmp_path, ["mean_tokens"], do_lower_case=True)
    newer = tmp_path / "sentence_bert_config.json"
    expected = load(str(tmp_path))
    newer.rename(tmp_path / f"sentence_{kind}_config.json")
    assert load(str(tmp_path)).fingerprint == expected.fingerprint


def test_the_newer_name_of_a_pooling_is_read(tmp_path: Path) -> None:
    model, tokenizer = sentence_folder(tmp_path, ["mean_tokens"])
    put(tmp_path / "1_Pooling" / "config.json", {"embedding_dimension": 32, "pooling_mode": "max"})
    expected = np.stack([states(model, tokenizer, caption, 12).max(axis=0) for caption in CAPTIONS])
    np.testing.assert_allclose(rows(load(str(tmp_path))), expected, atol=2e-5, rtol=1e-4)


def modules(*kinds: str) -> list[dict[str, Any]]:
    return [{"idx": 0, "name": "0", "path": "", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("modules.json", modules("CLIPModel"), "lists CLIPModel.*Give the folder of the CLIP model"),
        ("modules.json", modules("Transformer", "Pooling", "LSTM"), "lists Transformer, Pooling, LSTM"),
        ("modules.json", {"a": 1}, "is not a list of modules"),
        ("1_Pooling/config.json", {"pooling_mode_lasttoken": True}, "pools by pooling_mode_lasttoken; expected one"),
        ("1_Pooling/config.json", {}, "pools by nothing"),
        ("1_Pooling/config.json", None, "config.json is missing.*Copy the whole folder"),
        ("2_Dense/config.json", {"activation_function": "my.code.Run"}, "has the activation my.code.Run"),
        ("2_Dense/config.json", {"in_features": 3, "out_features": 20}, "the weights in .* are not those"),
        ("2_Dense/config.json", {}, "the weights in .* are not those of its config.json: KeyError"),
        ("2_Dense/model.safetensors", [], "the weights in .* are not those of its config.json: SafetensorError"),
        ("sentence_bert_config.json", {"max_seq_length": "8"}, "max_seq_length is '8'; expected a whole number"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default prompt 'q' is none"),
        ("config.json", {"model_type": "bert", "vocab_size": 3}, "the tokenizer has|cannot be loaded"),
    ],
)
def test_what_a_sentence_folder_does_otherwise_is_refused(file: str, values: Any, message: str, tmp_path: Path) -> None:
    sentence_folder(tmp_path, ["mean_tokens"], dense=True)
    (tmp_path / file).unlink(missing_ok=True)
    if values is not None:
        put(tmp_path / file, values)
    with pytest.raises(ModelError, match=message):
        load(str(tmp_path))


BART = {"d_model": 8, "vocab_size": 80, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1}
BART |= {"decoder_attention_heads": 1, "max_position_embeddings": 20}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hf.BartModel(hf.BartConfig(**BART)), "a bart has no encoder of its own"),
        (lambda: hf.GPT2Model(hf.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=80)), "does not embed a caption"),
    ],
)
def test_models_without_an_encoder_are_refused(make: Any, message: str, tmp_path: Path) -> None:
    tokenizer = sentence_tokens()
    tokenizer.pad_token = None
    write(tmp_path, (make(), tokenizer))
    with pytest.raises(ModelError, match=message):
        load(str(tmp_path))


def test_parts_in_folders_are_fetched_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub's own filter lets through is copied from a folder that stands for a repository."""
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    sentence_folder(repository, ["cls_token"], dense=True)
    put(repository / "onnx" / "config.json", {})
    put(repository / "1_Pooling" / "more" / "config.json", {})

    def download(name: str, **patterns: Any) -> str:
        files = [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]
        for file in filter_repo_objects(files, **patterns):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / file, cache / file)
        return str(cache)

    monkeypatch.setattr(hub, "snapshot_download", download)
    hub.model_folder("hf:org/name", weights=False)
    assert not list(cache.rglob("*.safetensors"))
    np.testing.assert_array_equal(rows(load("hf:org/name")), rows(load(str(repository))))
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == ["1_Pooling", "2_Dense"]
    assert not (cache / "1_Pooling" / "more").exists()


def test_there_is_no_image_tower(tmp_path: Path) -> None:
    write(tmp_path, bert())
    encoder = load(str(tmp_path))
    for embed in (encoder.images, encoder.images_and_logits):
        with pytest.raises(ModelError, match="has no image tower: it is a BertModel"):
            embed({})


ONE_SIDED = [{"contrast": "SI-ST"}, {"feature": "ST>TT", "weight": 10}, {"relation": "ST>ST", "like": "TT>TT"}]


def test_a_live_teacher_of_captions_teaches_a_student(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "teacher", ["mean_tokens"])
    teachers = {"T": str(tmp_path / "teacher")}
    train = {"steps": 16, "lr": 1e-2}
    result = distill(tiny_run(tmp_path / "run", recipe=ONE_SIDED, teachers=teachers, train=train))
    found = [entry["terms"] for entry in read_log(result.folder / "log.jsonl")]
    for name in found[0]:
        assert np.mean([terms[name] for terms in found[-4:]]) < np.mean([terms[name] for terms in found[:4]]), name


def test_stored_captions_give_what_the_live_teacher_gives(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "teacher", ["mean_tokens"])
    words = ["scenes:train?n=64", "--model", str(tmp_path / "teacher"), "--out", str(tmp_path / "store")]
    assert main(["embed", *words, "--sides", "text", "--dtype", "float32"]) == 0
    assert EmbeddingStore.open(tmp_path / "store").sides == "T"
    losses = []
    for teacher in ("teacher", "store"):
        student = {**TINY, "tokenizer": "train"}
        teachers = {"T": str(tmp_path / teacher)}
        run = tiny_run(tmp_path / f"by-{teacher}", recipe=ONE_SIDED, teachers=teachers, student=student)
        losses.append([entry["loss"] for entry in read_log(distill(run).folder / "log.jsonl")])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_student_of_captions_learns_from_captions_alone(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "teacher", ["mean_tokens"], dense=True)
    write(tmp_path / "small", bert())
    lines = tmp_path / "captions.txt"
    lines.write_text("\n".join(f"a {word} circle left of a {other} star" for word in WORDS for other in WORDS[:3]))
    run = tiny_run(
        tmp_path / "run",
        recipe=[{"feature": "ST>TT", "metric": "cosine"}],
        data=str(lines),
        teachers={"T": str(tmp_path / "teacher")},
        student={"pretrained": str(tmp_path / "small")},
        train={"steps": 12, "lr": 1e-3},
    )
    result = distill(run)
    found = [entry["loss"] for entry in read_log(result.folder / "log.jsonl")]
    assert np.mean(found[-3:]) < np.mean(found[:3])
    student = load(str(result.student))
    assert (student.sides, student.width) == ("T", 32)
    card = (result.student / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity" in card
    assert "picture" not in card
