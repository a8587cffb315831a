import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { MediaFile, Sample } from '../../video/index/sample.ts';
import { systems } from './registry.ts';

test('what has no words is left to systems that learn from frames alone: others would learn to say nothing', () => {
  const files = [{ kind: 'video' }] as unknown as readonly MediaFile[];
  const cue = { startSeconds: 0, endSeconds: 1, text: 'a red circle' };
  const spoken: Sample = {
    ...{ id: '0', media: [{ file: 0, startSeconds: 0, endSeconds: 2 }], text: cue.text },
    ...{ cues: [cue], decodeMegapixels: 1 },
  };
  for (const system of systems) {
    const name = system.schema.shape.name.value;
    assert.ok(system.takes(spoken, files), name);
    assert.equal(
      system.takes({ ...spoken, text: '', cues: [] }, files),
      // Pictures and texts by themselves are a part of what FLAVA learns from.
      ['videobert', 'flava'].includes(name),
      name,
    );
  }
});
