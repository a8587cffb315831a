import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BeamSearch, type BeamOptions, type Candidate } from './beam-search.ts';

const END = 9;
const candidate = (score: number, beam: number, token: number): Candidate => ({
  score,
  beam,
  token,
});
/** Two steps of two beams: each time the second best continuation ends, and the best goes on. */
const STEPS = [
  [candidate(-0.1, 0, 1), candidate(-0.2, 0, END), candidate(-3, 0, 2), candidate(-4, 0, 3)],
  [candidate(-0.3, 0, 5), candidate(-0.4, 0, END), candidate(-3.1, 1, 6), candidate(-5, 1, END)],
];

function searched(options: Partial<BeamOptions>, maxLength = 10): BeamSearch {
  const search = new BeamSearch(1, { numBeams: 2, ...options }, { eosIds: [END], maxLength });
  for (const step of STEPS) search.advance([step]);
  return search;
}

test('early stopping ends a row with its first finished texts; else it ends when none could be better', () => {
  // Two texts are finished at -0.2 each (-0.4 over two tokens); the running one is at -0.3 / 2.
  assert.equal(searched({ earlyStopping: true }).isDone, true);
  assert.equal(searched({ earlyStopping: false }).isDone, false);
  // Without the penalty it is at -0.3, behind the worse of -0.2 and -0.4 by nothing: it may go on; with 'never' too.
  assert.equal(searched({ lengthPenalty: 0 }).isDone, false);
  // A penalty below zero favours the short: -0.3 * 2 is worse than -0.2 * 1, but not than -0.4 * 2.
  assert.equal(searched({ lengthPenalty: -1 }).isDone, false);
  const search = searched({ lengthPenalty: 0 });
  search.advance([
    [candidate(-0.5, 0, 7), candidate(-0.6, 0, 8), candidate(-6, 1, 1), candidate(-7, 1, 2)],
  ]);
  assert.equal(search.isDone, true, '-0.5 is behind both finished texts');
});

test('the best text is the one of the highest score, divided by its length to the penalty', () => {
  const [first] = searched({ lengthPenalty: 0 }).best();
  assert.deepEqual([first!.ids, first!.score], [[END], Math.fround(-0.2)]);
  const [long] = searched({ lengthPenalty: 2 }).best();
  assert.deepEqual([long!.ids, long!.score], [[1, END], Math.fround(-0.1)]);
});

test('texts that reach the end of the room are finished as they are', () => {
  const search = searched({}, 2);
  assert.equal(search.isDone, true);
  assert.deepEqual(search.best()[0]!.ids, [1, 5]);
});

test('beams that go on name the beam they come from', () => {
  const search = new BeamSearch(2, { numBeams: 2 }, { eosIds: [END], maxLength: 10 });
  assert.equal(search.numCandidates, 4);
  search.advance([STEPS[0]!, STEPS[0]!]);
  const { parents, tokens } = search.advance([STEPS[1]!, STEPS[1]!]);
  assert.deepEqual([...parents], [0, 1, 2, 3]);
  assert.deepEqual([...tokens], [5, 6, 5, 6]);
});
