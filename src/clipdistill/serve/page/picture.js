// A picture is made small in the browser: models look at far fewer pixels, and the original stays here.

/** The longest side that is sent, in pixels. */
const SIDE = 512;
const MOST_BYTES = 60e6;

/** Why a file is no picture to search with; `word` and `values` say it in the page's language. */
export class PictureError extends Error {
  constructor(word, values) {
    super(word);
    Object.assign(this, { word, values });
  }
}

/** Decode, turn upright and scale a file down to a JPEG as a data URI; transparency becomes white. */
export async function shrink(file) {
  const name = file.name || "?";
  if (file.size > MOST_BYTES) {
    throw new PictureError("pictureBig", { name, size: Math.round(file.size / 1e6), most: MOST_BYTES / 1e6 });
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new PictureError("pictureBad", { name });
  }
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.92);
}

/** The first file of a paste or a drop that calls itself a picture, if there is one. */
export function pictureOf(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));
}
