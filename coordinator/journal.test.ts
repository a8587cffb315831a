import assert from 'node:assert/strict';
import {
  appendFileSync,
  closeSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { decodeRecord, encodeRecord, openJournal, readJournal, renewJournal } from './journal.ts';
import type { JournalRecord } from './journal.ts';

const surroundings = {
  wallTime: () => new Date(0),
  onFailure: (error: Error) => {
    throw error;
  },
};

async function scratch(): Promise<string> {
  return join(await temporaryFolder('journal'), 'journal.jsonl');
}

function recordsOf(path: string): JournalRecord[] {
  const records: JournalRecord[] = [];
  readJournal(path, (record) => records.push(record));
  return records;
}

function write(path: string, count: number): JournalRecord[] {
  const journal = openJournal(path, () => undefined, surroundings);
  const records = Array.from({ length: count }, (_, i) =>
    journal.append({ type: 'restored', step: i * 37, from: i % 2 === 0 ? 'memory' : 'checkpoint' }),
  );
  journal.close();
  return records;
}

describe('the journal', () => {
  it('gives back what was written, line by line, as JSON that other tools read', async () => {
    const path = await scratch();
    const written = write(path, 5);
    assert.deepEqual(recordsOf(path), written);
    const lines = readFileSync(path, 'utf8').trimEnd().split('\n');
    assert.equal((JSON.parse(lines[4]!) as { step: number }).step, 148);
  });

  it('keeps numbers that JSON lacks', () => {
    const record: JournalRecord = {
      seq: 1,
      time: '',
      type: 'commit',
      step: 1,
      generation: 1,
      firstPosition: 0,
      numSamples: 8,
      objectives: [{ name: 'umlaut ä "quoted"', lossSum: NaN, count: Infinity, correct: -0 }],
      gradientNorm: -Infinity,
      learningRate: 5e-324,
      clips: 1,
      tokens: 1,
      skipped: [],
      checkpoint: false,
      last: false,
    };
    assert.deepEqual(decodeRecord(encodeRecord(record).trimEnd()), record);
  });

  it('cut at any byte, opens with all whole records before the cut and appends after them', async () => {
    const path = await scratch();
    const written = write(path, 24);
    const whole = readFileSync(path);
    const ends = [...whole.entries()].filter(([, byte]) => byte === 10).map(([i]) => i + 1);
    for (let cut = 0; cut <= whole.length; cut++) {
      writeFileSync(path, whole.subarray(0, cut));
      const survivors = ends.filter((end) => end <= cut).length;
      assert.deepEqual(recordsOf(path), written.slice(0, survivors), `cut at ${cut}`);
      if (cut % 7 !== 0) continue; // Opening syncs to disk; a seventh of the cuts is enough of that.
      const journal = openJournal(path, () => undefined, surroundings);
      const next = journal.append({ type: 'stop-requested' });
      journal.close();
      assert.equal(next.seq, survivors + 1);
      assert.deepEqual(recordsOf(path), [...written.slice(0, survivors), next]);
    }
  });

  it('with any bit flipped, gives a prefix of what was written and never anything else', async () => {
    const path = await scratch();
    const written = write(path, 4);
    const whole = readFileSync(path);
    for (let bit = 0; bit < whole.length * 8; bit++) {
      const bent = Buffer.from(whole);
      bent[bit >> 3]! ^= 1 << (bit & 7);
      writeFileSync(path, bent);
      const records = recordsOf(path);
      assert.ok(records.length < written.length, `bit ${bit} went unseen`);
      assert.deepEqual(records, written.slice(0, records.length));
    }
  });

  it('refuses a repeated or missing line, and keeps what it cuts off beside the journal', async () => {
    const path = await scratch();
    const written = write(path, 3);
    const lines = readFileSync(path, 'utf8').split('\n').slice(0, 3);
    appendFileSync(path, `${lines[2]!}\n`);
    openJournal(path, () => undefined, surroundings).close();
    assert.deepEqual(recordsOf(path), written);
    assert.deepEqual(readdirSync(join(path, '..')).sort(), [
      'journal.jsonl',
      'journal.jsonl.damaged-4',
    ]);
    writeFileSync(path, `${lines[0]!}\n${lines[2]!}\n`);
    assert.deepEqual(recordsOf(path), written.slice(0, 1));
  });

  it('renewed, has what was written, and nothing more of whoever had it open', async () => {
    const path = await scratch();
    await renewJournal(path, () => true); // there is none yet
    const old = openJournal(path, () => undefined, surroundings);
    const written = [1, 2].map((step) => old.append({ type: 'restored', step, from: 'memory' }));
    const descriptor = openSync(path, 'r+');
    await assert.rejects(
      renewJournal(path, () => false),
      { code: 'RUN_FENCED' },
    );
    written.push(old.append({ type: 'stop-requested' }));
    await renewJournal(path, () => true);
    assert.deepEqual(recordsOf(path), written);
    assert.throws(() => old.append({ type: 'stop-requested' }), {
      code: 'RUN_FENCED',
      message: /goes on in another file/,
    });
    const journal = openJournal(path, () => undefined, surroundings);
    const next = journal.append({ type: 'stop-requested' });
    // What a machine that was cut off still has to write goes where the file ended for it.
    writeSync(descriptor, Buffer.alloc(4096, 'x'), 0, 4096, statSync(path).size - 10);
    closeSync(descriptor);
    assert.deepEqual(recordsOf(path), [...written, next]);
    const last = journal.append({ type: 'stop-requested' });
    journal.close();
    old.close();
    assert.deepEqual(recordsOf(path), [...written, next, last]);
    assert.deepEqual(readdirSync(join(path, '..')), ['journal.jsonl']);
  });
});
