import assert from 'node:assert/strict';
import { test } from 'node:test';
import { transcriptOf } from './asr.ts';

/** `start-end text`, one a cue. */
function linesOf(value: unknown): string[] | undefined {
  return transcriptOf(value)?.cues.map(
    ({ startSeconds, endSeconds, text }) => `${startSeconds}-${endSeconds} ${text}`,
  );
}

test('Whisper: words where there are, segments where not', () => {
  const value = {
    text: ' Go now. Yes.',
    segments: [
      {
        id: 0,
        start: 0,
        end: 1.5,
        text: ' Go now.',
        words: [
          { word: ' Go', start: 0, end: 0.5, probability: 0.9 },
          { word: ' now.', start: 0.5, end: 1.5 },
        ],
      },
      { id: 1, start: 2, end: 3, text: ' Yes.', words: [] },
      { id: 2, start: 4, end: 5, text: ' No words.' },
    ],
  };
  assert.deepEqual(linesOf(value), ['0-0.5 Go', '0.5-1.5 now.', '2-3 Yes.', '4-5 No words.']);
});

test('WhisperX: a number without times goes with the word before it', () => {
  const words = [
    { word: 'in', start: 1, end: 1.2, score: 0.5 },
    { word: '1987' },
    { word: 'we', start: 2, end: 2.1 },
  ];
  assert.deepEqual(linesOf({ segments: [{ start: 1, end: 3, text: '', words }] }), [
    '1-1.2 in 1987',
    '2-2.1 we',
  ]);
});

test('whisper.cpp, the Hugging Face pipeline, HowTo100M and plain lists', () => {
  const cpp = {
    transcription: [
      {
        timestamps: { from: '00:00:01,000', to: '00:00:02,500' },
        offsets: { from: 1000, to: 2500 },
        text: ' one',
      },
    ],
  };
  assert.deepEqual(linesOf(cpp), ['1-2.5 one']);
  const pipeline = {
    text: 'a b',
    chunks: [
      { timestamp: [0, 1], text: ' a' },
      { timestamp: [1, null], text: ' b' },
    ],
  };
  assert.deepEqual(linesOf(pipeline), ['0-1 a']);
  assert.equal(transcriptOf(pipeline)!.numFaulty, 1);
  assert.deepEqual(linesOf({ start: [3, 1], end: [4, 2], text: ['b', 'a'] }), ['1-2 a', '3-4 b']);
  assert.deepEqual(linesOf([{ start: 1, end: 2, text: 'a' }]), ['1-2 a']);
});

test('YouTube’s json3: words at their offsets, line ends left out', () => {
  const events = [
    { tStartMs: 0, dDurationMs: 9000, id: 1, wpWinPosId: 1 },
    {
      tStartMs: 160,
      dDurationMs: 4000,
      segs: [{ utf8: 'so' }, { utf8: ' today', tOffsetMs: 320 }],
    },
    { tStartMs: 2390, dDurationMs: 2000, aAppend: 1, segs: [{ utf8: '\n' }] },
    { tStartMs: 2400, dDurationMs: 1000, segs: [{ utf8: 'we' }] },
  ];
  assert.deepEqual(linesOf({ wireMagic: 'pb3', events }), [
    '0.16-0.48 so',
    '0.48-2.39 today',
    '2.4-3.4 we',
  ]);
});

test('faulty times are left out and counted, other values are no transcripts', () => {
  const spans = [
    [-1, 1],
    [2, 1],
    [NaN, 1],
    ['1', 2],
    [0, 1],
  ].map(([start, end]) => ({ start, end, text: 'x' }));
  const { cues, numFaulty } = transcriptOf({
    segments: [...spans, { text: 'no times' }, { start: 0, end: 1, text: ' ' }, null, 3],
  })!;
  assert.deepEqual([cues.length, numFaulty], [1, 5]);
  for (const value of [null, 3, 'text', [], [1], {}, { caption: 'x' }, { segments: 5 }]) {
    assert.equal(transcriptOf(value), undefined);
  }
});
