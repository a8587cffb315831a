import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import type { Sample } from '../../video/index/sample.ts';
import type { SampleIndex } from '../../video/index/sample-index.ts';
import { trainTokenizer } from '../../video/text/tokenizer.ts';
import { resolveConfig, type Config } from '../config.ts';
import { systemNamed } from '../systems/registry.ts';
import type { Row, VideoLanguageSystem } from '../systems/system.ts';
import { TOKENIZER_FILE } from '../systems/text-assets.ts';

const QUESTIONS = [
  ['what colour is it ?', 'red', 'blue'],
  ['which way does it move ?', 'left', 'up'],
  ['what happens ?', 'a red circle moves left', 'a blue star moves up'],
] as const;

/** Questions and captions of four clips, two alike. */
export const TEST_SAMPLES: readonly Sample[] = [0, 1, 2, 3].flatMap((file) =>
  QUESTIONS.map(([question, ...answers], i): Sample => {
    const answer = answers[file % 2]!;
    return {
      id: `${file}-${i}`,
      media: [{ file, startSeconds: 0, endSeconds: 2 }],
      text: `${question}\n${answer}`,
      cues: [{ startSeconds: 0.3, endSeconds: 1, text: file % 2 === 0 ? 'apple' : 'house' }],
      parts: [
        { role: 'user', media: 0 },
        { role: 'user', text: question },
        { role: 'assistant', text: answer },
      ],
      decodeMegapixels: 1,
    };
  }),
);

/** The system of a stage of a recipe, opened on {@link TEST_SAMPLES} without any run; small unless a preset is named. */
export async function openTestSystem(
  recipe: string,
  stage: string,
  overrides: readonly string[],
  { preset, vocabulary }: { readonly preset?: string; readonly vocabulary?: number } = {},
): Promise<{ readonly system: VideoLanguageSystem; readonly config: Config }> {
  const url = new URL(`../recipes/${recipe}.yaml`, import.meta.url);
  const config = resolveConfig({
    ...{ text: await readFile(url, 'utf8'), file: recipe, stage },
    preset,
    overrides: preset === undefined ? ['data.frameSize=16', ...overrides] : overrides,
  });
  const folder = await temporaryFolder('system');
  const words = trainTokenizer(
    TEST_SAMPLES.flatMap(({ text, cues }) => [text, ...cues.map((cue) => cue.text)]),
    { vocabularySize: 200 },
  );
  // Pieces that no text has fill it up to the wanted size.
  const vocab = { ...words.model.vocab };
  for (let id = Object.keys(vocab).length; id < (vocabulary ?? 0); id++) vocab[`piece${id}`] = id;
  const file = { ...words, model: { ...words.model, vocab } };
  await writeFile(join(folder, TOKENIZER_FILE), JSON.stringify(file));
  const index = { train: TEST_SAMPLES, heldOut: TEST_SAMPLES, files: [] };
  const context = { config, folder, index: index as unknown as SampleIndex };
  return { system: await systemNamed(config.model.name).open(context), config };
}

/** Rows of samples, with pictures and sounds that differ from clip to clip. */
export function testRows(samples: readonly Sample[], { data }: Config, epoch = 0): Row[] {
  const numFrames = data.windows * data.framesPerWindow;
  return samples.map((sample, number): Row => {
    const { file } = sample.media[0]!;
    const bytes = numFrames * data.frameSize ** 2 * 3;
    return {
      ...{ sample, number, epoch },
      frames: Uint8Array.from({ length: bytes }, (_, i) => (i * (7 + file) + (i >> 5)) % 251),
      timesSeconds: Array.from({ length: numFrames }, (_, i) => i / 2),
      ...(data.audio !== null && {
        audio: Float32Array.from({ length: data.audio.numMels * data.audio.numFrames }, (_, i) =>
          Math.sin(i * (1 + file)),
        ),
      }),
    };
  });
}
