/**
 * A process that fetches files through a media cache: `fetch-child.ts <folder> <maxBytes> <url>...`. Says `ready` first
 * and at the end a line of JSON: the SHA-256 of each file, or an error's code.
 */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { VideoloomError } from '../../../proto/errors.ts';
import { openLocalStore } from '../local.ts';
import { openMediaCache } from '../media-cache.ts';

const [folder, maxBytes, ...urls] = process.argv.slice(2);
const cache = openMediaCache({
  folder: folder!,
  maxBytes: Number(maxBytes),
  store: openLocalStore('.'),
  options: { allowPrivate: true },
});
process.stdout.write('ready\n');
const found: string[] = [];
for (const url of urls) {
  try {
    const held = await cache.acquire({ path: url });
    found.push(
      createHash('sha256')
        .update(await readFile(held.path))
        .digest('hex'),
    );
    held.release();
  } catch (error) {
    if (!(error instanceof VideoloomError)) throw error;
    found.push(error.code);
  }
}
process.stdout.write(`${JSON.stringify(found)}\n`);
await cache.close();
