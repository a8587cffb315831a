// Node reads no TypeScript: the sources are compiled into programs in a folder of the user's cache, in a second, once for
// what they are now. A loader that compiles while it loads would cost each process and each thread that second, and six
// hundred files a third of one.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { userCacheDir } from './user-cache.mjs';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
export const FOLDERS = ['proto', 'coordinator', 'worker', 'video', 'deploy'];
const KEPT = 8;
const DAY_MS = 86_400_000;

const HOUR_MS = 3_600_000;

/** @type {string | undefined} */
let known;
/** @type {NodeJS.Timeout | undefined} */
let keeping;

/** The folder that holds the programs, each where its source lies in the project; makes it where that is not done yet. */
export function compiledRoot() {
  known ??= findOrMake();
  return known;
}

function findOrMake() {
  const digest = createHash('sha256').update(`${process.version} ${ROOT}\n`);
  // Packages are part of the programs: npm writes the second file with each change of them.
  for (const file of [...projectFiles(ROOT), join('node_modules', '.package-lock.json')]) {
    const { size, mtimeMs } = statSync(join(ROOT, file), { throwIfNoEntry: false }) ?? {};
    digest.update(`${file} ${size} ${mtimeMs}\n`);
  }
  const name = digest.digest('hex').slice(0, 16);
  for (const home of cacheHomes()) {
    if (!isOurs(home)) continue;
    const tree = join(home, name);
    try {
      // Its age is the time since its last use.
      const now = new Date();
      utimesSync(tree, now, now);
      return tree;
    } catch {
      // It is not there.
    }
    make(tree);
    prune(home);
    return tree;
  }
  throw new Error(`neither of ${cacheHomes().join(', ')} can be written: set XDG_CACHE_HOME`);
}

/** Makes the folder; whether nobody else can put code there. @param {string} home */
function isOurs(home) {
  try {
    mkdirSync(home, { recursive: true, mode: 0o700 });
    const { uid, mode } = statSync(home);
    return (mode & 0o022) === 0 && uid === (process.getuid?.() ?? uid);
  } catch {
    return false;
  }
}

/** The user's cache; where it cannot be written, a folder for temporary files. */
function cacheHomes() {
  const user = process.getuid?.() ?? 'any';
  return [
    join(userCacheDir(process.env), 'compiled'),
    join(tmpdir(), `videoloom-compiled-${user}`),
  ];
}

const CODE_CACHE = '-v8';

/**
 * Where Node keeps what V8 makes of the programs in a folder: beside it, since Node makes it as soon as it starts.
 * @param {string} tree
 */
export function codeCacheOf(tree) {
  return `${tree}${CODE_CACHE}`;
}

/** @param {string} root @returns {string[]} the files of the project without its tests, relative to `root` */
export function projectFiles(root) {
  /** @param {string} folder @returns {string[]} */
  const filesBelow = (folder) =>
    readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
      const path = join(folder, entry.name);
      return entry.isDirectory() ? filesBelow(path) : path.endsWith('.test.ts') ? [] : [path];
    });
  return FOLDERS.flatMap(filesBelow);
}

/** @param {string} tree */
function make(tree) {
  const own = mkdtempSync(`${tree}-`);
  const compiler = join(ROOT, 'proto', 'compile-sources.mjs');
  try {
    execFileSync(process.execPath, [compiler, ROOT, own, tree], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    renameSync(own, tree);
  } catch (error) {
    rmSync(own, { recursive: true, force: true });
    // Another process was first.
    if (!statSync(tree, { throwIfNoEntry: false })) throw error;
  }
}

/** Removes those of older sources that nobody has begun to use for a day. @param {string} home */
function prune(home) {
  const trees = readdirSync(home)
    .filter((name) => !name.endsWith(CODE_CACHE))
    .map((name) => join(home, name))
    .map((path) => ({ path, atMs: statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0 }))
    .sort((a, b) => b.atMs - a.atMs);
  for (const { path, atMs } of trees.slice(KEPT)) {
    if (Date.now() - atMs <= DAY_MS) continue;
    for (const each of [path, codeCacheOf(path)]) rmSync(each, { recursive: true, force: true });
  }
}

/**
 * The program of a module of ours, to be run as a process or a thread of its own. The compiler finds the modules that
 * are run so by the calls of this function: the address is written out in them.
 * @param {URL} source address of its `.ts`, relative to a module of ours
 * @returns {string} path
 */
export function compiled(source) {
  const path = fileURLToPath(source);
  const script = join(dirname(path), `${basename(path, '.ts')}.js`);
  // In a program, it lies where its source does.
  if (statSync(script, { throwIfNoEntry: false }) !== undefined) {
    keepInUse();
    return script;
  }
  return join(compiledRoot(), script.slice(ROOT.length));
}

/** A program of a run that takes days still reads parts of its folder, which is in use as long as it lives. */
function keepInUse() {
  keeping ??= setInterval(() => {
    try {
      utimesSync(ROOT, new Date(), new Date());
    } catch {
      // It is not ours to mark: another user's, or a project whose sources are run as they are.
    }
  }, HOUR_MS).unref();
}
