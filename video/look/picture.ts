import sharp from 'sharp';

/** RGB pixels [height, width, 3] as a `data:` URL: PNG keeps every pixel, JPEG is a tenth of its size. */
export async function pictureUrl(
  pixels: Uint8Array,
  size: { readonly width: number; readonly height: number },
  format: 'png' | 'jpeg' = 'png',
): Promise<string> {
  const raw = { width: size.width, height: size.height, channels: 3 } as const;
  const encoded = await sharp(pixels, { raw }).toFormat(format).toBuffer();
  return `data:image/${format};base64,${encoded.toString('base64')}`;
}

/** RGB pixels [height, width, 3] as a square of so many pixels; those of a smaller picture stay squares of one colour. */
export async function squarePixels(
  pixels: Uint8Array,
  { width, height }: { readonly width: number; readonly height: number },
  side: number,
): Promise<Uint8Array> {
  const scaled = sharp(pixels, { raw: { width, height, channels: 3 } });
  return scaled.resize(side, side, { fit: 'fill', kernel: 'nearest' }).raw().toBuffer();
}

/** Text as it may stand between the tags of SVG or inside of an attribute. */
export function escapeXml(text: string): string {
  // Control characters are not allowed in XML in any form.
  return text
    .replace(/[^\t\n\r\u0020-\uD7FF\uE000-\uFFFD\u{10000}-\u{10FFFF}]/gu, '\uFFFD')
    .replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
}
