"""How a model is used in the folder of another library: a section of its model card, by the layout in its record."""

from __future__ import annotations

_SENTENCES = """## Use

```python
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")  # this folder
pictures, captions = model.encode([Image.open("a.jpg")]), model.encode(["a red circle", "a dog"])
print(model.similarity(pictures, captions))
```"""

_JAVASCRIPT = """## Use

```javascript
import { pipeline } from "@huggingface/transformers";

// "models/this-folder" under env.localModelPath, or a name on the hub
const classify = await pipeline("zero-shot-image-classification", "models/this-folder", { dtype: "fp32" });
console.log(await classify("a.jpg", ["red circle", "dog"], { hypothesis_template: "a {}" }));
```"""

_IMMICH = """## Use

Copy this folder to where immich's machine learning keeps the model of the name that is set in immich, `clip/NAME` in
its cache. Captions enter `textual/model.onnx` as `text`, int32; pictures enter `visual/model.onnx` as `image`,
float32."""

USAGES = {"sentence-transformers": _SENTENCES, "transformers.js": _JAVASCRIPT, "immich": _IMMICH}
