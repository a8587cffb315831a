// Node reads no TypeScript: all sources are compiled at once into a folder of the user's cache, in half a second, once for
// what they are now. A loader that compiles while it loads would cost each process and each thread that second.
import { createHash } from 'node:crypto';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { userCacheDir } from './user-cache.mjs';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const FOLDERS = ['proto', 'coordinator', 'worker', 'video', 'deploy'];
/** Another one than what an older release of this file made. */
const FORM = '1';
const KEPT = 8;
const DAY_MS = 86_400_000;

/** @type {string | undefined} */
let known;

/** The folder that holds the compiled sources, laid out as they are; compiles them where that is not done yet. */
export function compiledRoot() {
  known ??= findOrMake();
  return known;
}

function findOrMake() {
  const files = FOLDERS.flatMap((folder) => filesBelow(folder));
  const digest = createHash('sha256').update(`${FORM} ${process.version} ${ROOT}\n`);
  for (const file of files) {
    const { size, mtimeMs } = statSync(join(ROOT, file));
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
    make(files, tree);
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

/** @param {string} folder relative to the root @returns {string[]} */
function filesBelow(folder) {
  return readdirSync(join(ROOT, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? filesBelow(path) : path.endsWith('.test.ts') ? [] : [path];
  });
}

/** @param {string[]} files @param {string} tree */
function make(files, tree) {
  const own = mkdtempSync(`${tree}-`);
  try {
    const sources = files.filter((file) => file.endsWith('.ts'));
    /** @type {typeof import('esbuild')} */
    const { buildSync } = createRequire(import.meta.url)('esbuild');
    const { outputFiles } = buildSync({
      entryPoints: sources.map((file) => join(ROOT, file)),
      outbase: ROOT,
      outdir: own,
      format: 'esm',
      platform: 'node',
      target: `node${process.versions.node}`,
      sourcemap: true,
      sourcesContent: false,
      write: false,
    });
    for (const { path, text } of outputFiles) {
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, path.endsWith('.js') ? withJavaScriptNames(text) : text);
    }
    // What the sources read that lies beside them, and the packages.
    for (const file of files) {
      if (sources.includes(file)) continue;
      mkdirSync(dirname(join(own, file)), { recursive: true });
      symlinkSync(join(ROOT, file), join(own, file));
    }
    symlinkSync(join(ROOT, 'node_modules'), join(own, 'node_modules'));
    writeFileSync(join(own, 'package.json'), readFileSync(join(ROOT, 'package.json')));
    renameSync(own, tree);
  } catch (error) {
    rmSync(own, { recursive: true, force: true });
    // Another process was first.
    if (!statSync(tree, { throwIfNoEntry: false })) throw error;
  }
}

/** Imports of ours name the source file. @param {string} code */
function withJavaScriptNames(code) {
  return code.replace(/(\b(?:from|import)[ (]*)"(\.{1,2}\/[^"\n]+)\.ts"/g, '$1"$2.js"');
}

/** Removes those of older sources that nobody has begun to use for a day. @param {string} home */
function prune(home) {
  const trees = readdirSync(home)
    .map((name) => join(home, name))
    .map((path) => ({ path, atMs: statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0 }))
    .sort((a, b) => b.atMs - a.atMs);
  for (const { path, atMs } of trees.slice(KEPT)) {
    if (Date.now() - atMs > DAY_MS) rmSync(path, { recursive: true, force: true });
  }
}

/**
 * The JavaScript of a module of ours, to be run as a process or a thread of its own.
 * @param {URL} source address of its `.ts`, relative to a module of ours
 * @returns {string} path
 */
export function compiled(source) {
  const path = fileURLToPath(source);
  const script = join(dirname(path), `${basename(path, '.ts')}.js`);
  // In a compiled module, that lies beside it.
  if (statSync(script, { throwIfNoEntry: false }) !== undefined) return script;
  return join(compiledRoot(), script.slice(ROOT.length));
}
