import { readFile } from 'node:fs/promises';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import type { Sample } from '../../video/index/sample.ts';
import type { SampleIndex } from '../../video/index/sample-index.ts';
import type { ClipLoader, ClipRequest } from '../../video/loading/loader.ts';
import { resolveConfig, type Config } from '../config.ts';
import { systemNamed } from '../systems/registry.ts';
import type { Row, VideoLanguageSystem } from '../systems/system.ts';

const SCENES = ['red circle', 'blue star', 'pink square', 'white diamond'];
const MOTIONS = ['left', 'right'];

/** Eight clips, each with a caption of its own and with what is said at four times of it. */
export const CAPTIONED: readonly Sample[] = Array.from({ length: 8 }, (_, file): Sample => {
  const [scene, motion] = [SCENES[file % 4]!, MOTIONS[Math.floor(file / 4)]!];
  return {
    id: String(file),
    media: [{ file, startSeconds: 0, endSeconds: 4 }],
    text: `a ${scene} moves ${motion}`,
    cues: SCENES.map((_scene, i) => ({
      ...{ startSeconds: i, endSeconds: i + 0.9 },
      text: `the ${SCENES[(i + file) % 4]!} there`,
    })),
    decodeMegapixels: 1,
  };
});

/** The system of a recipe as `prepare` fits and opens it, on {@link CAPTIONED} unless others are given; without media. */
export async function openCaptioned(
  recipe: string,
  {
    preset,
    stage,
    overrides = [],
    samples = CAPTIONED,
  }: {
    readonly preset?: string;
    readonly stage?: string;
    readonly overrides?: readonly string[];
    readonly samples?: readonly Sample[];
  },
): Promise<{ readonly system: VideoLanguageSystem; readonly config: Config }> {
  const file = new URL(`../recipes/${recipe}.yaml`, import.meta.url);
  const text = await readFile(file, 'utf8');
  const config = resolveConfig({ text, file: recipe, preset, stage, overrides });
  const folder = await temporaryFolder('system');
  const known = { train: samples, heldOut: samples, files: [] };
  const index = known as unknown as SampleIndex;
  const rows = captionedRows(config, samples);
  const loader = {
    load: (requests: readonly ClipRequest[]) =>
      Promise.resolve(requests.map(({ sample }) => ({ ...rows[sample]!, sample }))),
  } as unknown as ClipLoader;
  const definition = systemNamed(config.model.name);
  await definition.fit({ config, index, folder, loader, initialWords: [] });
  return { system: await definition.open({ config, index, folder }), config };
}

/** Rows of samples with pixels of their own, a frame a second from half a second on. */
export function captionedRows({ data }: Config, samples = CAPTIONED, epoch = 0): Row[] {
  const numFrames = data.windows * data.framesPerWindow;
  const frameBytes = data.frameSize ** 2 * 3;
  return samples.map((sample, number) => ({
    ...{ sample, number, epoch },
    frames: Uint8Array.from({ length: numFrames * frameBytes }, (_, i) => {
      return (i * (3 + number) + Math.floor(i / frameBytes) * 17) % 251;
    }),
    timesSeconds: Array.from({ length: numFrames }, (_, i) => i + 0.5),
  }));
}
