// Opens a layout with transformers.js and prints, as JSON, what it makes of two captions and a picture.
// node rows.mjs PARENT NAME PIXELS(json file, [h][w][3]) CAPTION CAPTION
import { readFileSync } from "node:fs";
import {
  AutoProcessor,
  AutoTokenizer,
  CLIPTextModelWithProjection,
  CLIPVisionModelWithProjection,
  RawImage,
  env,
  pipeline,
} from "@huggingface/transformers";

const [parent, name, pixels, ...captions] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = parent;
const full = { dtype: "fp32" };

const tokenizer = await AutoTokenizer.from_pretrained(name);
const inputs = tokenizer(captions, { padding: true, truncation: true });
const { text_embeds } = await (await CLIPTextModelWithProjection.from_pretrained(name, full))(inputs);

const rows = JSON.parse(readFileSync(pixels));
const image = new RawImage(new Uint8ClampedArray(rows.flat(2)), rows[0].length, rows.length, 3);
const processor = await AutoProcessor.from_pretrained(name);
const { image_embeds } = await (await CLIPVisionModelWithProjection.from_pretrained(name, full))(await processor(image));

const classify = await pipeline("zero-shot-image-classification", name, full);
const found = await classify(image, captions, { hypothesis_template: "{}" });
console.log(
  JSON.stringify({
    ids: Array.from(inputs.input_ids.data, Number),
    texts: text_embeds.tolist(),
    images: image_embeds.tolist(),
    scores: Object.fromEntries(found.map(({ label, score }) => [label, score])),
  }),
);
