import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import {
  cp,
  mkdir,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { basename, join } from 'node:path';
import { before, test } from 'node:test';
import { promisify } from 'node:util';
import { digestFile } from '../../proto/durable-file.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { ffmpeg, makeFilm, WITHOUT_FFMPEG } from '../test/films.ts';
import { DEFAULT_SETTINGS, type X264Preset } from './h264-options.ts';
import { ELSEWHERE, eventually, processesWith, runData, startData } from './test/command.ts';
import { transcode, TRANSCODE_REPORT, type TranscodeSummary } from './transcode.ts';

const run = promisify(execFile);
const skip = WITHOUT_FFMPEG;
const folder = await temporaryFolder('transcode');
/** Films of four containers, two of them damaged, with words beside them. */
let films: string;

before(async () => {
  if (skip !== false) return;
  films = join(folder, 'films');
  await mkdir(join(films, 'sub'), { recursive: true });
  const sound = ['-f', 'lavfi', '-i', 'sine=duration=1'];
  const picture = (size: string, rate: number): string[] => [
    ...['-f', 'lavfi', '-i', `testsrc2=duration=1:size=${size}:rate=${rate}`],
  ];
  await ffmpeg(
    ...picture('642x480', 50),
    ...sound,
    '-c:v',
    'libvpx',
    '-c:a',
    'libvorbis',
    join(films, 'a.webm'),
  );
  await ffmpeg(
    ...picture('320x240', 25),
    ...sound,
    '-c:v',
    'mpeg4',
    '-c:a',
    'mp3',
    join(films, 'sub/b.avi'),
  );
  // The left half is red; by this display matrix, which counts counterclockwise, it is shown as the lower half.
  const halves = 'color=red:s=120x160:d=1:r=10[l];color=blue:s=120x160:d=1:r=10[r];[l][r]hstack';
  const flat = join(folder, 'flat.mov');
  await ffmpeg('-f', 'lavfi', '-i', halves, '-c:v', 'libx264', '-pix_fmt', 'yuv444p', flat);
  await ffmpeg('-i', flat, '-c', 'copy', '-metadata:s:v', 'rotate=90', join(films, 'turned.mov'));
  const hdr = ['-color_trc', 'smpte2084', '-color_primaries', 'bt2020', '-colorspace', 'bt2020nc'];
  const deep = ['-vf', 'setsar=2', '-c:v', 'libx264', '-pix_fmt', 'yuv420p10le', ...hdr];
  await ffmpeg(...picture('160x120', 24), ...deep, join(films, 'hdr.mkv'));
  await cp(join(films, 'sub/b.avi'), join(films, 'cut.avi'));
  await truncate(join(films, 'cut.avi'), 12_000);
  await writeFile(join(films, 'noise.mp4'), 'this is no film');
  await writeFile(join(films, 'a.txt'), 'a pattern');
  await writeFile(join(films, 'sub/b.en.vtt'), 'WEBVTT\n');
  await writeFile(join(films, 'noise.txt'), 'words of nothing');
});

function toH264(
  out: string,
  { preset = 'veryfast', ...rest }: { source?: string; stallMs?: number; preset?: X264Preset } = {},
): Promise<TranscodeSummary> {
  const settings = { ...DEFAULT_SETTINGS, preset };
  return transcode({ source: films, out, settings, numJobs: 2, ...rest });
}

/** Content by path, of all but the journal. */
async function hashes(out: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const path of (await readdir(out, { recursive: true })).sort()) {
    if (basename(path) === '.transcode.jsonl' || (await stat(join(out, path))).isDirectory())
      continue;
    found[path] = (await digestFile(join(out, path))).sha256;
  }
  return found;
}

async function shapeOf(file: string): Promise<Record<string, unknown>> {
  const entries =
    'stream=codec_name,width,height,sample_aspect_ratio,pix_fmt,color_space,color_range,avg_frame_rate';
  const args = [
    '-v',
    'error',
    '-show_entries',
    `${entries}:stream_side_data=rotation`,
    '-of',
    'json',
    file,
  ];
  const { stdout } = await run('ffprobe', args);
  const { streams } = JSON.parse(stdout) as { streams: Record<string, unknown>[] };
  return { ...streams[0], numStreams: streams.length };
}

test(
  'films of any container become upright SDR of square pixels, and the damaged are told',
  { skip },
  async () => {
    const out = join(folder, 'made');
    const summary = await toH264(out);
    assert.deepEqual(Object.keys(await hashes(out)), [
      ...['a.mp4', 'a.txt', 'hdr.mp4', 'sub/b.en.vtt', 'sub/b.mp4', TRANSCODE_REPORT, 'turned.mp4'],
    ]);
    const common = {
      ...{ codec_name: 'h264', sample_aspect_ratio: '1:1', pix_fmt: 'yuv420p' },
      ...{ color_space: 'bt709', color_range: 'tv' },
    };
    const rate = { avg_frame_rate: '30/1' };
    const a = { ...common, ...rate, width: 482, height: 360, numStreams: 2 };
    assert.deepEqual(await shapeOf(join(out, 'a.mp4')), a);
    const { avg_frame_rate: hdrRate, ...hdr } = await shapeOf(join(out, 'hdr.mp4'));
    assert.deepEqual(hdr, { ...common, width: 320, height: 120, numStreams: 1 });
    assert.match(String(hdrRate), /^\d+\/\d+$/);
    const turned = { ...common, avg_frame_rate: '10/1', width: 160, height: 240, numStreams: 1 };
    assert.deepEqual(await shapeOf(join(out, 'turned.mp4')), turned);
    const args = [
      '-v',
      'error',
      '-i',
      join(out, 'turned.mp4'),
      '-frames:v',
      '1',
      '-pix_fmt',
      'rgb24',
    ];
    const { stdout } = await run('ffmpeg', [...args, '-f', 'rawvideo', '-'], {
      encoding: 'buffer',
    });
    const [top, bottom] = [stdout.subarray(0, 3), stdout.subarray(-3)];
    assert.ok(top[2]! > 230 && top[0]! < 25, `${top.join()} is blue`);
    assert.ok(bottom[0]! > 230 && bottom[2]! < 25, `${bottom.join()} is red`);

    assert.deepEqual([summary.numFiles, summary.numMade, summary.numKept], [6, 4, 0]);
    assert.deepEqual(
      summary.failed.map(({ path, code }) => [path, code]),
      [
        ['cut.avi', 'VIDEO_UNREADABLE'],
        ['noise.mp4', 'VIDEO_UNREADABLE'],
      ],
    );
    assert.match(summary.failed[1]!.message, /^noise.mp4: Invalid data found/);
    const report = JSON.parse(await readFile(join(out, TRANSCODE_REPORT), 'utf8')) as {
      ffmpeg: string;
    };
    assert.match(report.ffmpeg, /^ffmpeg version/);
  },
);

test(
  'what is done is not done again, unless the film or the settings are others',
  { skip },
  async () => {
    const out = join(folder, 'made');
    const before = await hashes(out);
    assert.equal((await toH264(out)).numKept, 4);
    assert.deepEqual(await hashes(out), before);
    const settings = { ...DEFAULT_SETTINGS, height: 64, hasAudio: false };
    const smaller = await transcode({ source: films, out, settings, numJobs: 2 });
    assert.deepEqual([smaller.numMade, smaller.numKept], [4, 0]);
    const { width, height, numStreams } = await shapeOf(join(out, 'sub/b.mp4'));
    assert.deepEqual([width, height, numStreams], [86, 64, 1]);
    // The same bytes as at first, whatever was there in between.
    assert.equal((await toH264(out)).numMade, 4);
    assert.deepEqual(await hashes(out), before);
  },
);

test(
  'two films that differ in their ending alone keep both, each with the words',
  { skip },
  async () => {
    const source = join(folder, 'twins');
    await mkdir(source);
    await makeFilm(join(source, 'a.mov'), { seconds: 1 });
    await makeFilm(join(source, 'a.mkv'), { seconds: 1 });
    await writeFile(join(source, 'a.txt'), 'both');
    const out = join(folder, 'twins-made');
    await toH264(out, { source });
    const names = ['a.mkv.mp4', 'a.mkv.txt', 'a.mov.mp4', 'a.mov.txt', TRANSCODE_REPORT];
    assert.deepEqual(Object.keys(await hashes(out)), names);
  },
);

test(
  'a film or words that are not there cost that film alone, and nothing that was made',
  { skip },
  async () => {
    const source = join(folder, 'vanishing');
    await mkdir(source);
    const film = await makeFilm(join(folder, 'whole.mp4'), { seconds: 1, size: '64x48', rate: 10 });
    for (const name of ['a', 'b', 'c']) await cp(film, join(source, `${name}.mp4`));
    await writeFile(join(source, 'a.txt'), 'words of a');
    await symlink('nowhere.mp4', join(source, 'd.mp4'));
    await symlink('nowhere.txt', join(source, 'b.txt'));
    const out = join(folder, 'vanished');
    const first = await toH264(out, { source });
    const lost = 'is not there: it was removed, or it is a link that leads nowhere';
    const code = 'VIDEO_UNREADABLE';
    assert.deepEqual(first.failed, [
      { path: 'b.mp4', code, message: `b.txt ${lost}` },
      { path: 'd.mp4', code, message: `d.mp4 ${lost}` },
    ]);
    assert.deepEqual([first.numMade, first.numKept], [2, 0]);
    const made = ['a.mp4', 'a.txt', 'c.mp4', TRANSCODE_REPORT];
    assert.deepEqual(Object.keys(await hashes(out)), made);

    // What was made before is of the film that is gone, and stays as that of one that was taken out would.
    await rm(join(source, 'c.mp4'));
    await symlink('nowhere.mp4', join(source, 'c.mp4'));
    await rm(join(source, 'b.txt'));
    const second = await toH264(out, { source });
    assert.deepEqual(
      second.failed.map(({ path }) => path),
      ['c.mp4', 'd.mp4'],
    );
    assert.deepEqual([second.numMade, second.numKept], [1, 1]);
    assert.deepEqual(Object.keys(await hashes(out)), [...made, 'b.mp4'].sort());
  },
);

test('a job that makes nothing in its time is killed and told', { skip }, async () => {
  const { failed } = await toH264(join(folder, 'stalled'), { stallMs: 1 });
  const codes = new Set(failed.map(({ code }) => code));
  assert.ok(codes.has('VIDEO_TIMEOUT'), [...codes].join());
});

test('an output within the source is refused', { skip }, async () => {
  await assert.rejects(toH264(join(films, 'out')), { code: 'OUT_IN_SOURCE' });
});

test(
  'kill -9 leaves no half file and no ffmpeg, and the next start gives the same bytes',
  { skip: skip || ELSEWHERE },
  async () => {
    const source = join(folder, 'long');
    await mkdir(source);
    for (const name of ['x', 'y', 'z']) {
      await makeFilm(join(source, `${name}.mkv`), {
        seconds: 2,
        size: '480x360',
        args: ['-preset', 'ultrafast'],
      });
    }
    const undisturbed = join(folder, 'undisturbed');
    await toH264(undisturbed, { source, preset: 'slower' });
    const out = join(folder, 'killed');
    const child = startData(['transcode', source, out, '--jobs', '1', '--preset', 'slower']);
    // In the middle of the second film.
    await eventually(async () => {
      // The journal first: read after the names, it may know the first film for done whose part is among them.
      const done = await readFile(join(out, '.transcode.jsonl'), 'utf8').catch(() => '');
      const names: string[] = await readdir(out).catch(() => []);
      const isBusy = done.includes('x.mkv') && names.some((name) => name.startsWith('.part-'));
      return isBusy ? true : undefined;
    });
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
    await eventually(async () => ((await processesWith(out)).length === 0 ? true : undefined));
    assert.deepEqual(
      (await readdir(out)).filter((name) => !name.startsWith('.')),
      ['x.mp4'],
    );
    assert.ok((await readdir(out)).some((name) => name.startsWith('.part-')));

    const { numMade, numKept } = await toH264(out, { source, preset: 'slower' });
    assert.deepEqual([numMade, numKept], [2, 1]);
    assert.deepEqual(await hashes(out), await hashes(undisturbed));
  },
);

test(
  'a full disk stops the command with one clear error and no half file',
  { skip: skip || ELSEWHERE },
  async () => {
    const out = join(folder, 'full');
    const wrapper = ['prlimit', '--fsize=8000'];
    const { code, output } = await runData(['transcode', films, out], { wrapper });
    assert.equal(code, 1);
    assert.match(output, /DISK_FULL: nothing more can be written below .*full \(.*\); make room/);
    assert.deepEqual(
      (await readdir(out)).filter((name) => name !== 'sub'),
      ['.transcode.jsonl'],
    );
  },
);

test(
  'the command fails only if no film gave a file, and says what it lacks',
  { skip },
  async () => {
    const source = join(folder, 'noise');
    await mkdir(source);
    await cp(join(films, 'noise.mp4'), join(source, 'noise.mp4'));
    const none = await runData(['transcode', source, join(folder, 'none')]);
    assert.equal(none.code, 1);
    assert.match(none.output, /no file: noise.mp4: VIDEO_UNREADABLE: noise.mp4: Invalid data/);
    const env = { ...process.env, PATH: films };
    const missing = await runData(['transcode', source, join(folder, 'none')], { env });
    assert.equal(missing.code, 1);
    assert.match(missing.output, /^FFMPEG_MISSING: .*install FFmpeg/m);
  },
);
