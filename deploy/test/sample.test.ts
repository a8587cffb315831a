import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { videoloom } from './command.ts';

describe('a trained run is asked', () => {
  let work: string;
  let clip: string;

  before(async () => {
    work = await temporaryFolder('work');
    const small = ['data.demoTrainClips=12', 'data.demoHeldOutClips=8', '--workers', '1'];
    const { code, output } = await videoloom(
      ['train', 'videobert', '--preset', 'tiny', '--steps', '3', '--out', 'run', ...small],
      { cwd: work },
    );
    assert.equal(code, 0, output);
    const folder = join(work, 'data', 'demo-world-7-12-8', 'held-out');
    clip = join(
      folder,
      (await readdir(folder)).find((name) => name.endsWith('.mp4'))!,
    );
  });

  it('sample completes a text about a video and draws a contact sheet with both', async () => {
    const text = 'look now [MASK] and see [MASK]';
    const { code, output } = await videoloom(['sample', 'run', clip, text, '--out', 'said.svg'], {
      cwd: work,
    });
    assert.equal(code, 0, output);
    const said = output.split('\n').find((line) => line.includes('look now'))!;
    assert.match(said, /look now \S+ and see \S+/);
    assert.ok(!said.includes('[MASK]'));
    const sheet = await readFile(join(work, 'said.svg'), 'utf8');
    assert.ok(sheet.includes('<image') && sheet.includes(text));
    assert.ok(sheet.includes(said.replace(/^[\d.]+ s: /, '').trim()));
  });

  it('a text with nothing to fill in, and a file that is no video, say so', async () => {
    const plain = await videoloom(['sample', 'run', clip, 'a circle'], { cwd: work });
    assert.equal(plain.code, 2, plain.output);
    assert.match(plain.output, /NOTHING_TO_FILL_IN/);
    const none = await videoloom(['sample', 'run', 'run/run.json'], { cwd: work });
    assert.notEqual(none.code, 0, none.output);
    assert.match(none.output, /DATA_EMPTY/);
  });

  it('probe gives every figure for whole clips, one frame, shuffled and reversed frames', async () => {
    const { code, output } = await videoloom(['probe', 'run', '--json'], { cwd: work });
    assert.equal(code, 0, output);
    const json = output.split('\n').find((line) => line.startsWith('['))!;
    const probed = JSON.parse(json) as {
      name: string;
      count: number;
      full: number;
      probes: Record<string, number>;
    }[];
    const names = probed.map(({ name }) => name);
    for (const name of ['masked-frame-accuracy', 'text-to-video', 'video-to-future'])
      assert.ok(names.includes(name), `${name} of ${names.join(', ')}`);
    for (const { count, probes } of probed) {
      assert.ok(count > 0);
      assert.deepEqual(Object.keys(probes), ['single', 'shuffled', 'reversed']);
    }
    // All frames are hidden there: the same is said of whatever is shown, and what is asked stays the same too.
    const { full, probes } = probed.find(({ name }) => name === 'text-to-video')!;
    assert.deepEqual(Object.values(probes), [full, full, full]);
  });
});
