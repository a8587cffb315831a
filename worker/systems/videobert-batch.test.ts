import assert from 'node:assert/strict';
import { describe, it, test } from 'node:test';
import { openRng } from '../../proto/random.ts';
import { assembleVideoBert, TRAINING, type VideoBertExample } from './videobert-batch.ts';
import { testAssembly } from '../test/assembly.ts';
import { chooseSpans } from '../tokens/masked-frames.ts';
import { applyMask, choosePositions } from '../tokens/masked-tokens.ts';

const CONFIG = testAssembly({
  ...{ seed: 11, textVocabulary: 50, visualVocabulary: 16, maxTextTokens: 8, numWindows: 6 },
  ...{ textMaskRatio: 0.25, visualMaskSpan: 3 },
});

function example(number: number, epoch = 0, numWords = 5): VideoBertExample {
  const rng = openRng(3, 'example', number);
  return {
    number,
    epoch,
    textIds: Int32Array.from({ length: numWords }, () => 6 + rng.integer(44)),
    visualWords: Int32Array.from({ length: 6 }, () => rng.integer(16)),
  };
}

const ASK = { ...TRAINING, alignment: 'matched' as const, maskAll: true };
const ASK_EVALUATION = { ...ASK, purpose: 'asked', variesSpeed: false };
const never = (): undefined => undefined;

test('a sequence is [CLS] words [>] visual words [SEP], padding in between', () => {
  const one = example(1);
  const hideNothing = { ...ASK, hideText: false, hideVideo: false };
  const { arrays, numTokens } = assembleVideoBert(CONFIG, [one], hideNothing, never);
  const visual = [...one.visualWords].map((word) => 50 + 1 + word);
  assert.deepEqual([...arrays['ids']!.data], [2, ...one.textIds, 0, 0, 0, 5, ...visual, 3]);
  assert.deepEqual(
    [...arrays['present']!.data],
    [1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
  );
  assert.deepEqual(
    [...arrays['segments']!.data],
    [...new Array<number>(9).fill(0), ...new Array<number>(8).fill(1)],
  );
  assert.equal(numTokens, 14);
});

test('labels are what stood at the hidden positions, counts are what is asked', () => {
  const rows = Array.from({ length: 20 }, (_, i) => example(i));
  const { arrays, counts } = assembleVideoBert(CONFIG, rows, ASK, never);
  const at = (name: string, row: number): number[] => {
    const { data, shape } = arrays[name]!;
    return [...data.slice(row * shape[1]!, (row + 1) * shape[1]!)];
  };
  let numText = 0;
  for (const [row, { textIds, visualWords }] of rows.entries()) {
    const ids = at('ids', row);
    for (const [slot, weight] of at('textWeights', row).entries()) {
      if (weight === 0) continue;
      numText++;
      const position = at('textPositions', row)[slot]!;
      assert.equal(ids[position], CONFIG.special.mask);
      assert.equal(at('textLabels', row)[slot], textIds[position - 1]);
    }
    for (const slot of [0, 1, 2]) {
      const position = at('visualPositions', row)[slot]!;
      assert.equal(ids[position], CONFIG.textVocabulary);
      assert.equal(at('visualLabels', row)[slot], visualWords[position - 2 - CONFIG.maxTextTokens]);
    }
  }
  assert.equal(counts['masked-token'], numText);
  assert.equal(counts['masked-frame'], 3 * rows.length);
});

test('a batch is a function of its rows: any grouping gives the same bytes', () => {
  const rows = Array.from({ length: 8 }, (_, i) => example(i, 2));
  const foreign = (rng: ReturnType<typeof openRng>): Int32Array =>
    example(100 + rng.integer(50)).textIds;
  const whole = assembleVideoBert(CONFIG, rows, TRAINING, foreign);
  const parts = [rows.slice(0, 3), rows.slice(3)].map((part) =>
    assembleVideoBert(CONFIG, part, TRAINING, foreign),
  );
  for (const [name, { data }] of Object.entries(whole.arrays)) {
    const joined = parts.flatMap(({ arrays }) => [...arrays[name]!.data]);
    assert.deepEqual(joined, [...data], name);
  }
  const nextEpoch = rows.map((row) => ({ ...row, epoch: 3 }));
  assert.notDeepEqual(
    assembleVideoBert(CONFIG, nextEpoch, TRAINING, foreign).arrays['ids'],
    whole.arrays['ids'],
  );
});

test('half of the pairs are mismatched, only their alignment counts, and both kinds have hidden words', () => {
  const rows = Array.from({ length: 400 }, (_, i) => example(i));
  const foreignIds = Int32Array.of(6, 7, 8, 9);
  const { arrays, counts } = assembleVideoBert(CONFIG, rows, TRAINING, () => foreignIds);
  const matched = [...arrays['matched']!.data];
  const numMatched = matched.reduce((a, b) => a + b, 0);
  // Binomial(400, 1/2): five standard deviations are 50.
  assert.ok(Math.abs(numMatched - 200) < 50, `${numMatched} of 400`);
  assert.equal(counts['alignment'], 400);
  const numAsked = [...arrays['visualWeights']!.data].reduce((a, b) => a + b, 0);
  assert.equal(counts['masked-frame'], numAsked);
  // One to three a matched pair, two on average; five standard deviations are a fifth of that.
  assert.ok(Math.abs(numAsked / numMatched - 2) < 0.4, `${numAsked} of ${numMatched}`);
  const length = arrays['ids']!.shape[1]!;
  for (const [row, isMatched] of matched.entries()) {
    const ids = [...arrays['ids']!.data.slice(row * length, (row + 1) * length)];
    const visual = ids.slice(2 + CONFIG.maxTextTokens, -1);
    if (isMatched === 0) {
      const weights = arrays['visualWeights']!;
      const own = weights.data.slice(row * weights.shape[1]!, (row + 1) * weights.shape[1]!);
      assert.ok(own.every((weight) => weight === 0));
    }
    // Hidden visual words must not tell a matched pair from a mismatched one.
    const changed = visual.filter((id, i) => id !== 51 + rows[row]!.visualWords[i]!).length;
    assert.ok(changed <= 3);
  }
  const hiddenIn = (kind: 0 | 1): number => {
    const of = matched.flatMap((value, row) => (value === kind ? [row] : []));
    const hidden = of.filter((row) =>
      arrays['ids']!.data.subarray(row * length, (row + 1) * length).includes(
        CONFIG.textVocabulary,
      ),
    );
    return hidden.length / of.length;
  };
  assert.ok(Math.abs(hiddenIn(0) - hiddenIn(1)) < 0.1);
});

test('one-modality models never see the other modality', () => {
  const rows = Array.from({ length: 10 }, (_, i) => example(i));
  const text = assembleVideoBert({ ...CONFIG, modalities: 'text' }, rows, TRAINING, never);
  const video = assembleVideoBert({ ...CONFIG, modalities: 'video' }, rows, TRAINING, never);
  const firstVisual = CONFIG.textVocabulary;
  assert.ok(text.arrays['ids']!.data.every((id) => id < firstVisual));
  assert.equal(text.counts['masked-frame'], 0);
  assert.equal(video.counts['masked-token'], 0);
  assert.ok(
    video.arrays['ids']!.data.every((id) => id >= firstVisual || id < CONFIG.special.firstWord),
  );
});

test('a sample without text is shown as video alone', () => {
  const { counts } = assembleVideoBert(CONFIG, [example(1, 0, 0)], TRAINING, never);
  const { 'masked-frame': numFrames, ...others } = counts;
  assert.ok(numFrames! >= 1 && numFrames! <= 3);
  assert.deepEqual(others, { 'masked-token': 0, alignment: 0 });
});

test("BERT's rule: of the chosen 80 % masked, 10 % random, 10 % kept", () => {
  const ids = new Int32Array(20_000).fill(7);
  const positions = [...ids.keys()];
  const { ids: masked } = applyMask(ids, positions, openRng(1, 'rule'), {
    maskId: 4,
    randomId: () => 9,
    maskAll: false,
  });
  const share = (id: number): number => masked.filter((value) => value === id).length / ids.length;
  assert.ok(Math.abs(share(4) - 0.8) < 0.015);
  assert.ok(Math.abs(share(9) - 0.1) < 0.012);
  assert.ok(Math.abs(share(7) - 0.1) < 0.012);
});

test('chosen positions are distinct, as many as asked, and spans are runs', () => {
  const rng = openRng(5, 'choose');
  for (let i = 0; i < 200; i++) {
    const positions = choosePositions([3, 5, 8, 13, 21, 34], { ratio: 0.5, limit: 10 }, rng);
    assert.equal(new Set(positions).size, 3);
    const spans = chooseSpans(12, { count: 3, span: 3 }, rng);
    assert.deepEqual(spans, [spans[0]!, spans[0]! + 1, spans[0]! + 2]);
    assert.ok(spans[2]! < 12);
  }
  assert.deepEqual(choosePositions([], { ratio: 0.5, limit: 10 }, rng), []);
});

test('text to video hides every window, video to future the later half and all words', () => {
  const rows = Array.from({ length: 8 }, (_, i) => example(i));
  const hidden = { ...ASK, hideText: false, hideVideo: true };
  const whole = assembleVideoBert(CONFIG, rows, { ...hidden, windows: 'all' }, never).arrays;
  const future = { ...hidden, windows: 'later' as const, isSilent: true };
  const later = assembleVideoBert(CONFIG, rows, future, never).arrays;
  const [length, mask] = [17, 50];
  for (const [row, { textIds, visualWords }] of rows.entries()) {
    const idsOf = ({ ids }: typeof whole): number[] => [
      ...ids!.data.slice(row * length, (row + 1) * length),
    ];
    assert.deepEqual(idsOf(whole).slice(1, 6), [...textIds]);
    assert.deepEqual(idsOf(whole).slice(10, 16), new Array<number>(6).fill(mask));
    const shown = [...visualWords.slice(0, 3)].map((word) => mask + 1 + word);
    assert.deepEqual(idsOf(later).slice(1, 9), new Array<number>(8).fill(0));
    assert.deepEqual(idsOf(later).slice(10, 16), [...shown, mask, mask, mask]);
  }
  // As many are asked as there is room for: those of a question that hides a share.
  const asked = ({ visualWeights }: typeof whole): number =>
    [...visualWeights!.data].reduce((a, b) => a + b, 0);
  const room = whole['visualLabels']!.shape[1]!;
  assert.equal(asked(whole), 8 * Math.min(6, room));
  assert.equal(asked(later), 8 * Math.min(3, room));
});

void describe('films at several speeds', () => {
  const varied = { ...CONFIG, visualStrides: 5, numWindows: 10, visualMaskRatio: 0.5 };
  const film = (number: number): VideoBertExample => ({
    ...example(number),
    visualWords: Int32Array.from({ length: 10 }, (_, at) => at),
  });
  const shownOf = (arrays: Record<string, { data: ArrayLike<number> }>, row: number): number[] => {
    const at = row * (varied.maxTextTokens + varied.numWindows + 3) + 2 + varied.maxTextTokens;
    const present = Array.from(arrays['present']!.data).slice(at, at + varied.numWindows);
    const ids = Array.from(arrays['ids']!.data).slice(at, at + varied.numWindows);
    // The mask in place of a word is its own id.
    return ids.filter((_, i) => present[i] === 1).map((id) => id - varied.textVocabulary - 1);
  };

  it('shows every s-th visual word, packed in front, and pads the rest', () => {
    const rows = Array.from({ length: 60 }, (_, i) => film(i));
    const open = { ...TRAINING, hideVideo: false, hideText: false };
    const { arrays } = assembleVideoBert(varied, rows, open, never);
    const strides = new Set<number>();
    for (const row of rows.keys()) {
      const shown = shownOf(arrays, row);
      const stride = (shown[1] ?? shown[0]! + 5) - shown[0]!;
      strides.add(stride);
      assert.ok(stride >= 1 && stride <= 5);
      assert.ok(shown[0]! < stride, 'begins among the first');
      const last = shown.at(-1)!;
      assert.ok(last + stride > 9, 'reaches to the end');
      for (const [i, word] of shown.entries()) assert.equal(word, shown[0]! + i * stride);
    }
    assert.deepEqual([...strides].sort(), [1, 2, 3, 4, 5]);
  });

  it('asks for words that are shown, with what stood there, and at least one', () => {
    const rows = Array.from({ length: 60 }, (_, i) => film(i));
    const { arrays, counts } = assembleVideoBert(
      { ...varied, mismatchedShare: 0 },
      rows,
      { ...TRAINING, maskAll: true },
      never,
    );
    const numSlots = arrays['visualPositions']!.shape[1]!;
    const length = arrays['ids']!.shape[1]!;
    let numAsked = 0;
    for (const row of rows.keys()) {
      const own = (name: string): number[] =>
        Array.from(arrays[name]!.data).slice(row * numSlots, (row + 1) * numSlots);
      const [positions, labels, weights] = [
        own('visualPositions'),
        own('visualLabels'),
        own('visualWeights'),
      ];
      const asked = [...weights.keys()].filter((slot) => weights[slot] === 1);
      assert.ok(asked.length >= 1);
      numAsked += asked.length;
      for (const slot of asked) {
        assert.equal(arrays['present']!.data[row * length + positions[slot]!], 1);
        assert.equal(arrays['ids']!.data[row * length + positions[slot]!], varied.textVocabulary);
      }
      // Labels of a film of ascending words ascend with their places, a whole stride apart.
      const places = asked.map((slot) => positions[slot]! - 2 - varied.maxTextTokens);
      for (let i = 1; i < asked.length; i++) {
        const words = labels[asked[i]!]! - labels[asked[i - 1]!]!;
        assert.equal(words % (places[i]! - places[i - 1]!), 0);
      }
    }
    assert.equal(counts['masked-frame'], numAsked);
  });

  it('draws the speed by row and epoch alone, and not in an evaluation', () => {
    const rows = Array.from({ length: 8 }, (_, i) => film(i));
    const whole = assembleVideoBert(varied, rows, TRAINING, never);
    const one = assembleVideoBert(varied, [rows[5]!], TRAINING, never);
    const length = whole.arrays['ids']!.shape[1]!;
    assert.deepEqual(
      [...one.arrays['ids']!.data],
      [...whole.arrays['ids']!.data].slice(5 * length, 6 * length),
    );
    assert.deepEqual(
      assembleVideoBert(varied, rows, ASK_EVALUATION, never),
      assembleVideoBert({ ...varied, visualStrides: 1 }, rows, ASK_EVALUATION, never),
    );
  });
});
