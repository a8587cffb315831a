import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { before, describe, test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { makeCorpus, type Corpus } from './corpus.ts';
import { fuzz, type FuzzFindings } from './fuzz-media.ts';
import { MUTATIONS } from './mutations.ts';

const SEED = 11;

/** Two files of each kind; `npm run fuzz:media` takes 500 and more. */
describe(`damaged media, seed ${SEED}`, () => {
  let scratch: string;
  let corpus: Corpus;
  let findings: FuzzFindings;
  before(async () => {
    scratch = await temporaryFolder('fuzz-media');
    const numFiles = 2 * Object.keys(MUTATIONS).length;
    corpus = await makeCorpus({ dir: scratch, seed: SEED, numFiles });
    findings = await fuzz({
      ...{ root: corpus.folder, source: 'folder', workDir: scratch, killEveryMs: 0 },
    });
  });

  test('every file is in the index or left out by name, and the good ones are in it', async () => {
    const { index } = findings;
    const names = new Set([
      ...index.files.map(({ path }) => path),
      ...index.skipped.map(({ path }) => path.replace(/[:#!].*/, '')),
    ]);
    const media = (await readdir(corpus.folder)).filter(
      (name) => !/\.(vtt|srt|txt|json)$/.test(name),
    );
    assert.deepEqual(
      media.filter((name) => !names.has(name)),
      [],
    );
    const good = index.files.filter(({ path }) => path.startsWith('good-'));
    assert.equal(good.length, media.filter((name) => name.startsWith('good-')).length);
    for (const name of ['empty', 'noise', 'picture-bomb', 'playlist-as-video', 'svg-as-picture']) {
      assert.ok(!index.files.some(({ path }) => path.startsWith(name)), name);
    }
  });

  test('a batch is filled whatever does not decode, and each loss has its reason', () => {
    const { substitutedByReason, numClips, index } = findings;
    assert.equal(numClips, index.train.length);
    const numSubstituted = Object.values(substitutedByReason).reduce((sum, n) => sum + n, 0);
    assert.ok(numSubstituted > 0 && numSubstituted < numClips, JSON.stringify(substitutedByReason));
    assert.equal(findings.numReplaced, 0, 'no decoder process died of a file');
  });

  test('decoder processes killed meanwhile change neither batches nor shards', async () => {
    const disturbed = await fuzz({
      ...{ root: corpus.folder, source: 'folder', workDir: scratch, killEveryMs: 1500 },
    });
    assert.ok(disturbed.numKilled > 0);
    assert.equal(disturbed.digest, findings.digest);
  });

  test('shards with damaged and dangerous members give what they hold, and nothing leaves them', async () => {
    const shards = await fuzz({
      ...{ root: corpus.shards, source: 'webdataset', workDir: scratch, killEveryMs: 0 },
    });
    assert.ok(shards.index.train.length > 0);
    for (const { path } of shards.index.files) assert.match(path, /^\d{6}\.tar$/);
    assert.ok(!(await readdir(tmpdir())).includes('outside.mp4'));
    assert.ok(!(await readdir(scratch)).includes('outside.mp4'));
  });
});
