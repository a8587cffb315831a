/** Films for the benches: real footage, encoded by x264 as people do it. */
import { existsSync } from 'node:fs';
import { mkdir, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { ffmpeg, realFilms } from '../test/films.ts';

export const FILM_SECONDS = 10;
export const FRAMES_PER_SECOND = 25;

/** How a kind of film is encoded. */
export interface FilmKind {
  readonly height: 360 | 720;
  readonly gop: number;
  readonly numBFrames: number;
  readonly preset: 'medium' | 'veryfast';
}

/** x264's and ffmpeg's defaults (medium, CRF 23), with and without B-frames, in two sizes and two GOP lengths. */
export const FILM_KINDS: readonly FilmKind[] = ([360, 720] as const).flatMap((height) =>
  [48, 250].flatMap((gop) =>
    [3, 0].map((numBFrames): FilmKind => ({ height, gop, numBFrames, preset: 'medium' })),
  ),
);

export function kindName({ height, gop, numBFrames }: FilmKind): string {
  return `${height}p, GOP ${gop}, ${numBFrames > 0 ? `${numBFrames} B-frames` : 'no B-frames'}`;
}

/** Two films of a kind (cartoon and camera), 10 s of 25 frames a second, made on first use. */
export async function filmsOf(cacheDir: string, kind: FilmKind): Promise<string[]> {
  const real = await realFilms();
  if ('skip' in real) throw new Error(real.skip);
  const folder = join(cacheDir, 'films');
  await mkdir(folder, { recursive: true });
  const { height, gop, numBFrames, preset } = kind;
  const films: string[] = [];
  for (const name of ['bigbuckbunny', 'bikes']) {
    const film = join(folder, `${name}-${height}p-${preset}-g${gop}-b${numBFrames}.mp4`);
    films.push(film);
    if (existsSync(film)) continue;
    process.stderr.write(`encoding ${film}\n`);
    const filter = `scale=${(height * 16) / 9}:${height}:flags=bicubic,fps=${FRAMES_PER_SECOND}`;
    const part = `${film}.part.mp4`;
    await ffmpeg(
      ...['-stream_loop', '3', '-i', join(real.folder, `${name}.mp4`), '-ss', '0.4'],
      ...['-t', String(FILM_SECONDS), '-an', '-vf', filter, '-pix_fmt', 'yuv420p'],
      ...['-c:v', 'libx264', '-preset', preset, '-crf', '23', '-g', String(gop)],
      ...['-bf', String(numBFrames), part],
    );
    await rename(part, film);
  }
  return films;
}
