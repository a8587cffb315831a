import assert from 'node:assert/strict';
import path from 'node:path';
import { before, describe, it } from 'node:test';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { openImageProcessor, readImageProcessor } from '../image-processor.ts';
import { compareImages, IMAGE_PROCESSORS } from '../parity/images.ts';
import { runPeer, whyNoPeer } from '../parity/peer.ts';

/** Of float32 in values of size 2: the last bit. */
const TOLERANCE = 3e-7;

const missing = await whyNoPeer();

describe('pictures are made ready as by transformers', { skip: missing ?? false }, () => {
  let folder: string;

  before(async () => {
    folder = await temporaryFolder('images');
    await runPeer('images.py', folder);
  });

  for (const name of IMAGE_PROCESSORS) {
    it(`${name}: of 14 pictures of 7 sizes, every value (${TOLERANCE})`, async () => {
      const { numPictures, difference } = await compareImages(path.join(folder, name));
      assert.equal(numPictures, 14);
      assert.ok(difference <= TOLERANCE, `off by ${difference}`);
    });
  }

  it('a config of what cannot be done here is refused, and so is a folder without one', async () => {
    for (const wrong of [{ resample: 0 }, { image_mean: [0.5] }, { size: { longest_edge: 9 } }]) {
      assert.throws(() => openImageProcessor({ size: 8, ...wrong }), { code: 'PRETRAINED_CONFIG' });
    }
    await assert.rejects(readImageProcessor(path.join(folder, 'none')), {
      code: 'PRETRAINED_UNREADABLE',
    });
  });
});
