import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { chmod, cp, mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import module from 'node:module';
import { before, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { temporaryFolder } from './test/temporary-folder.ts';

const OWN = dirname(new URL(import.meta.url).pathname);
const PACKAGES = join(OWN, '..', 'node_modules');
const folder = await temporaryFolder('compiled');
const project = join(folder, 'project');

/** A project as this one is laid out: a program that starts a thread and reads a file beside it. */
before(async () => {
  for (const name of ['proto', 'coordinator', 'worker', 'video', 'deploy'])
    await mkdir(join(project, name), { recursive: true });
  for (const name of ['compile-sources.mjs', 'compiled.mjs', 'user-cache.mjs'])
    await cp(join(OWN, name), join(project, 'proto', name));
  await mkdir(join(project, 'node_modules'));
  for (const name of await readdir(PACKAGES))
    if (!name.startsWith('.'))
      await symlink(join(PACKAGES, name), join(project, 'node_modules', name));
  const files = {
    'package.json': '{"type":"module"}',
    'worker/greeting.txt': 'hello',
    // Shared by both programs, and read by the second only when it needs it.
    'worker/words/words.ts': `export const words = (text: string): string[] => text.split(' ');
      export const place: string = import.meta.url;`,
    'worker/thread.ts': `import { parentPort } from 'node:worker_threads';
      const { words } = await import('./words/words.ts');
      parentPort!.postMessage(words('from a thread'));`,
    'worker/main.ts': `import { readFileSync } from 'node:fs';
      import { Worker } from 'node:worker_threads';
      import { parse } from 'yaml';
      import { compiled } from '../proto/compiled.mjs';
      import { place, words } from './words/words.ts';
      const text: string = readFileSync(new URL('greeting.txt', import.meta.url), 'utf8');
      const thread = new Worker(compiled(new URL('thread.ts', import.meta.url)));
      thread.once('message', (said: string[]) => {
        console.log(JSON.stringify([words(text), said, parse('a: 1'), place]));
      });`,
  };
  await mkdir(join(project, 'worker', 'words'));
  for (const [name, text] of Object.entries(files)) await writeFile(join(project, name), text);
});

/** Compiles the project with a cache of its own; gives the path of the program. */
async function compile(cache: string): Promise<string> {
  const script = `const { compiled } = await import(${JSON.stringify(join(project, 'proto', 'compiled.mjs'))});
    console.log(compiled(new URL(${JSON.stringify(`file://${join(project, 'worker', 'main.ts')}`)})));`;
  const env = { ...process.env, XDG_CACHE_HOME: cache, TMPDIR: join(folder, 'tmp') };
  const args = ['--input-type=module', '-e', script];
  return (await promisify(execFile)(process.execPath, args, { env })).stdout.trim();
}

test('all sources are compiled once for what they are, and run without a loader', async () => {
  const cache = join(folder, 'once');
  const main = await compile(cache);
  assert.ok(main.startsWith(join(cache, 'videoloom', 'compiled')), main);
  const { stdout } = await promisify(execFile)(process.execPath, [main], { cwd: folder });
  const place = pathToFileURL(join(dirname(main), 'words', 'words.ts')).href;
  assert.deepEqual(JSON.parse(stdout), [['hello'], ['from', 'a', 'thread'], { a: 1 }, place]);
  assert.equal(await compile(cache), main);
  await writeFile(join(project, 'worker', 'more.ts'), 'export const more = 1;');
  const other = await compile(cache);
  assert.notEqual(other, main);
  // As npm leaves it.
  await writeFile(join(project, 'node_modules', '.package-lock.json'), '{"packages":{}}');
  assert.notEqual(await compile(cache), other);
});

test('a source that does not compile is named, and leaves nothing behind', async () => {
  const cache = join(folder, 'broken');
  const broken = join(project, 'worker', 'words', 'words.ts');
  const text = await readFile(broken, 'utf8');
  await writeFile(broken, 'export const words = ;');
  await assert.rejects(compile(cache), /worker\/words\/words\.ts:1:/);
  await writeFile(broken, text);
  assert.deepEqual(await readdir(join(cache, 'videoloom', 'compiled')), []);
});

test('processes that compile at once end with one folder', async () => {
  const cache = join(folder, 'together');
  const mains = await Promise.all(Array.from({ length: 4 }, () => compile(cache)));
  assert.equal(new Set(mains).size, 1);
  assert.equal((await readdir(join(cache, 'videoloom', 'compiled'))).length, 1);
});

test('nothing is run from a folder that others can write', async () => {
  const cache = join(folder, 'open');
  const shared = join(cache, 'videoloom', 'compiled');
  await mkdir(shared, { recursive: true });
  await chmod(shared, 0o777);
  const main = await compile(cache);
  assert.ok(main.startsWith(join(folder, 'tmp')), main);
});

const keepsCode = 'enableCompileCache' in module;

test(
  'what V8 makes of the programs is kept beside them',
  { skip: !keepsCode && 'Node 20 keeps none' },
  async () => {
    const cache = join(folder, 'kept');
    const env = { ...process.env, XDG_CACHE_HOME: cache, NODE_COMPILE_CACHE: undefined };
    const command = join(OWN, '..', 'deploy', 'videoloom.mjs');
    await promisify(execFile)(process.execPath, [command, '--help'], { env });
    const home = join(cache, 'videoloom', 'compiled');
    const cached = (await readdir(home)).find((name) => name.endsWith('-v8'));
    const kept = await readdir(join(home, cached!), { recursive: true });
    assert.ok(kept.length > 2, kept.join());
  },
);
