/** Pages that are drawn as SVG, in the form that the name of their file asks for. */
import { extname } from 'node:path';
import sharp from 'sharp';
import { UsageError } from '../../proto/errors.ts';
import { escapeXml } from './picture.ts';

const ENDINGS = ['.svg', '.html', '.png'];

/** @throws UsageError USAGE for an ending other than .svg, .html and .png */
export function checkPageName(file: string): void {
  if (!ENDINGS.includes(extname(file).toLowerCase()))
    throw new UsageError('USAGE', `${file}: a page ends in .svg, .html or .png`);
}

/** The page by itself, inside of HTML under a title, or as PNG. */
export async function pageAs(svg: string, file: string, title: string): Promise<string | Buffer> {
  switch (extname(file).toLowerCase()) {
    case '.html':
      return `<!doctype html>\n<meta charset="utf-8">\n<title>${escapeXml(title)}</title>\n${svg}`;
    case '.png':
      return sharp(Buffer.from(svg), { limitInputPixels: false, unlimited: true }).png().toBuffer();
    default:
      return svg;
  }
}
