"""What the program's own HTTP interface takes and gives; that of other programs' clients is beside their routes.

The page and scripts speak this one: ``GET /api/indexes``, ``POST /api/search``, ``GET /api/search?q=``, and
``GET /thumbnails/{index}/{id}`` at the address that a hit names. An error of any of them is an :class:`ErrorBody`.
Where keys are asked for, each of them wants ``Authorization: Bearer KEY``, thumbnails too.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

#: Inputs of one request; a caption of more characters says nothing that a model of captions reads.
MOST_TEXTS, MOST_IMAGES, MOST_IDS, MOST_HITS, TEXT_LENGTH = 2048, 64, 64, 1000, 20_000
#: How far a text of ``negatives`` leads away, where no weight is given.
NEGATIVE = 0.5

Text = Annotated[str, Field(min_length=1, max_length=TEXT_LENGTH)]
#: Of an index or a model.
Name = Annotated[str, Field(max_length=200)]
#: A data URI, base64 alone, or the address of a picture on a host that the server may fetch from.
Image = Annotated[str, Field(min_length=1)]
Weight = Annotated[float, Field(gt=0, le=1000)]
Probability = Annotated[float, Field(gt=0, lt=1)]

#: Tags of forms that a field may have, by which a mistake is found in the form that was meant; see :func:`form_of`.
STRING, LIST, OBJECT = "<string>", "<list>", "<object>"


def form_of(value: Any) -> str:
    """Tell the form of a value that is a string, a list, or an object."""
    return STRING if isinstance(value, str) else LIST if isinstance(value, list) else OBJECT


class Strict(BaseModel):
    """A request in which every field is known, and every number is one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class WeightedText(Strict):
    """A text, and how much it counts."""

    text: Text
    weight: Weight = 1.0


class WeightedImage(Strict):
    """A picture, and how much it counts."""

    image: Image
    weight: Weight = 1.0


class WeightedId(Strict):
    """A picture of the index, and how much it counts."""

    id: Text
    weight: Weight = 1.0


AnyText = Annotated[Annotated[Text, Tag(STRING)] | Annotated[WeightedText, Tag(OBJECT)], Discriminator(form_of)]
AnyImage = Annotated[Annotated[Image, Tag(STRING)] | Annotated[WeightedImage, Tag(OBJECT)], Discriminator(form_of)]
AnyId = Annotated[Annotated[Text, Tag(STRING)] | Annotated[WeightedId, Tag(OBJECT)], Discriminator(form_of)]


class SearchRequest(Strict):
    """What is searched for: texts, pictures and pictures of the index, at least one, and texts that lead away from it.

    ``index`` is the first one by default. ``where`` is a filter, as ``tags has beach and width >= 1024``.
    ``min_precision`` keeps hits whose probability is at least that. ``distinct`` leaves out copies of a better hit.
    """

    index: Name | None = None
    texts: Annotated[list[AnyText], Field(max_length=MOST_IDS)] = []
    images: Annotated[list[AnyImage], Field(max_length=MOST_IDS)] = []
    ids: Annotated[list[AnyId], Field(max_length=MOST_IDS)] = []
    negatives: Annotated[list[AnyText], Field(max_length=MOST_IDS)] = []
    where: Annotated[str, Field(max_length=TEXT_LENGTH)] | None = None
    k: Annotated[int, Field(ge=1, le=MOST_HITS)] = 20
    min_precision: Probability | None = None
    distinct: bool = False
    exact: bool = False


class HitBody(BaseModel):
    """A picture that was found.

    ``score`` is the cosine, ``probability`` that it is a match, where the index can tell. ``width`` and ``height`` are
    the picture's own, in pixels. ``location`` is its address, where it has one on the web.
    """

    id: str
    score: float
    probability: float | None
    caption: str
    tags: list[str]
    width: int
    height: int
    thumbnail: str
    location: str | None


class SearchResponse(BaseModel):
    """Hits, best first. ``nothing_matches`` says why nothing does, where nothing does; see the hits all the same.

    ``calibrated`` says what the probabilities were learnt from, or why there are none.
    """

    index: str
    version: int
    milliseconds: float
    nothing_matches: str | None
    calibrated: str
    hits: list[HitBody]


class Calibrated(BaseModel):
    """Which queries have hits with a probability."""

    text: bool
    image: bool


class IndexBody(BaseModel):
    """An index that is served.

    ``model`` is its name among the models, ``fingerprint`` that of its weights. ``examples`` are captions of the index
    to try, possibly none. ``sides`` are what can be searched with: ``"I"`` pictures, ``"T"`` texts, ``"IT"`` both.
    """

    name: str
    count: int
    version: int
    model: str
    fingerprint: str
    width: int
    sides: str
    calibrated: Calibrated
    examples: list[str]


class IndexesResponse(BaseModel):
    """The indexes that are served; the first one is searched by default."""

    indexes: list[IndexBody]


class Error(BaseModel):
    """What is wrong, in words, and of what kind; ``param`` is the field of the request that is."""

    message: str
    type: str
    param: str | None = None


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: Error
