"""Say what a scene shows, in English or Chinese, fully or carelessly.

A caption is made in two steps: *tell* chooses what is said (objects, relation, background), the language how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

from clipdistill.data.scene_space import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Object, Scene

#: Each concept in English: the usual word first.
ENGLISH: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "big": ("big", "large", "huge"),
    "plain": ("plain", ""),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "rhombus"),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "donut"),
    "moon": ("moon", "crescent"),
    "shape": ("shape",),
    "red": ("red", "crimson"),
    "green": ("green",),
    "blue": ("blue", "navy"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "orange": ("orange",),
    "cyan": ("cyan", "turquoise"),
    "white": ("white",),
    "grass": ("grass", "meadow"),
    "sand": ("sand", "beach"),
    "sky": ("sky",),
    "night": ("night", "darkness"),
    "stone": ("stone", "concrete"),
    "brick": ("brick", "wall"),
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "and": ("and",),
}
#: Each concept in Chinese: the usual word first.
CHINESE: dict[str, tuple[str, ...]] = {
    "small": ("小", "小小的"),
    "big": ("大", "大大的"),
    "plain": ("纯色", ""),
    "striped": ("条纹",),
    "dotted": ("圆点", "波点"),
    "circle": ("圆形", "圆盘"),
    "square": ("方块", "正方形"),
    "triangle": ("三角形",),
    "diamond": ("菱形",),
    "star": ("星星", "五角星"),
    "cross": ("十字", "加号"),
    "ring": ("圆环", "甜甜圈"),
    "moon": ("月亮", "月牙"),
    "shape": ("图形",),
    "red": ("红色",),
    "green": ("绿色",),
    "blue": ("蓝色",),
    "yellow": ("黄色", "金色"),
    "purple": ("紫色",),
    "orange": ("橙色", "橘色"),
    "cyan": ("青色",),
    "white": ("白色",),
    "grass": ("草地上", "草坪上"),
    "sand": ("沙滩上", "沙地上"),
    "sky": ("天空中",),
    "night": ("夜晚里", "夜空中"),
    "stone": ("石头上", "水泥上"),
    "brick": ("砖墙上", "墙上"),
    "left": ("左边", "左侧"),
    "right": ("右边", "右侧"),
    "above": ("上面", "上方"),
    "below": ("下面", "下方"),
    "and": ("和",),
}
#: Words that alt texts carry and that say nothing about the picture.
ENGLISH_JUNK = [
    "photo",
    "image",
    "picture",
    "stock",
    "free",
    "download",
    "hd",
    "wallpaper",
    "vector",
    "design",
    "new",
    "best",
    "art",
    "background",
    "icon",
    "illustration",
]
CHINESE_JUNK = [
    "照片",
    "图像",
    "图片",
    "图库",
    "免费",
    "下载",
    "高清",
    "壁纸",
    "矢量",
    "设计",
    "新款",
    "最佳",
    "艺术",
    "背景",
    "图标",
    "插画",
]

INVERSE = {"left": "right", "above": "below"}

#: Chooses one of several ways to say a concept.
Choose = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Telling:
    """What a caption says, as concepts: one or two objects, the link between them, the background."""

    objects: tuple[tuple[str, ...], ...]
    link: str | None
    background: str | None


def caption(scene: Scene, language: str, rng: Random, drop: float = 0.0, fill: float = 0.0) -> str:
    """Describe a scene in ``language`` ("en" or "zh").

    ``drop`` is the probability that an attribute, an object, the relation or the background is left unsaid,
    ``fill`` that one to three words of alt-text junk stand before or after the description.
    """
    words, say, space, junk = _LANGUAGES[language]
    text = say(tell(scene, rng, drop), words, rng.choice)
    if rng.random() >= fill:
        return text
    noise = space.join(rng.choice(junk) for _ in range(rng.randint(1, 3)))
    return space.join((noise, text) if rng.random() < 0.5 else (text, noise))


def tell(scene: Scene, rng: Random, drop: float = 0.0) -> Telling:
    """Choose what to say of a scene: two thirds of relations as they are, one third inversely."""

    def kept() -> bool:
        return rng.random() >= drop

    def mention(thing: Object) -> tuple[str, ...]:
        adjectives = [word for word in (thing.size, thing.colour, thing.texture) if kept()]
        return (*adjectives, thing.shape if kept() else "shape")

    objects, link = list(scene.objects), scene.relation
    if link is not None:
        if not kept():
            objects, link = [rng.choice(objects)], None
        elif not kept():
            objects, link = rng.sample(objects, 2), "and"
        elif rng.random() < 1 / 3:
            objects, link = objects[::-1], INVERSE[link]
    background = scene.background if kept() else None
    return Telling(tuple(mention(thing) for thing in objects), link, background)


def prompts() -> tuple[list[str], dict[str, list[list[str]]]]:
    """Return the 48 class names of zero-shot classification, and for "en" and "zh" the prompts of each class.

    A class is a size, a colour and a texture; its 48 prompts show it in every shape before every background.
    """
    looks = list(product(SIZES, COLOURS, TEXTURES))
    ensembles: dict[str, list[list[str]]] = {
        language: [
            [
                say(Telling(((*look, shape),), None, background), words, _usual)
                for shape, background in product(SHAPES, BACKGROUNDS)
            ]
            for look in looks
        ]
        for language, (words, say, _, _) in _LANGUAGES.items()
    }
    return [" ".join(look) for look in looks], ensembles


def _usual(ways: Sequence[str]) -> str:
    return ways[0]


def _english(telling: Telling, words: dict[str, tuple[str, ...]], choose: Choose) -> str:
    objects = [" ".join(filter(None, (choose(words[c]) for c in concepts))) for concepts in telling.objects]
    phrases = [f"{'an' if text[0] in 'aeiou' else 'a'} {text}" for text in objects]
    if telling.link:
        phrases.insert(1, choose(words[telling.link]))
    if telling.background:
        phrases += ["on", choose(words[telling.background])]
    return " ".join(phrases)


def _chinese(telling: Telling, words: dict[str, tuple[str, ...]], choose: Choose) -> str:
    """``草地上大红色条纹圆形在小蓝色方块左边``: the place first, the relation last."""
    objects = ["".join(choose(words[c]) for c in concepts) for concepts in telling.objects]
    place = choose(words[telling.background]) if telling.background else ""
    if telling.link is None:
        return f"{place}的{objects[0]}" if place else objects[0]
    link = choose(words[telling.link])
    if telling.link == "and":
        return place + link.join(objects)
    return f"{place}{objects[0]}在{objects[1]}{link}"


_Say = Callable[[Telling, dict[str, tuple[str, ...]], Choose], str]
#: Of each language: its words, its grammar, what stands between two words, its junk.
_LANGUAGES: dict[str, tuple[dict[str, tuple[str, ...]], _Say, str, list[str]]] = {
    "en": (ENGLISH, _english, " ", ENGLISH_JUNK),
    "zh": (CHINESE, _chinese, "", CHINESE_JUNK),
}
