// Compiles the sources into programs: `node compile-sources.mjs ROOT OUT TREE`, where TREE is the path that the folder OUT
// will have. A process of its own, because compiled.mjs cannot wait for a promise and only this form of esbuild takes
// plugins.
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';
import { FOLDERS, projectFiles } from './compiled.mjs';

/**
 * Packages that a process loads at its start: in a program they are a few files, without what is never called, and not
 * hundreds. The others stay where they are, since some have native parts and most are not needed by every process.
 */
const PACKAGES = [
  ...[
    '@bufbuild/protobuf',
    '@grpc/grpc-js',
    '@tensorflow/tfjs-backend-cpu',
    '@tensorflow/tfjs-core',
  ],
  ...['commander', 'ipaddr.js', 'picocolors', 'pino', 'prom-client', 'yaml', 'zod'],
];

/**
 * @param {string} root @param {string} out @param {string} tree
 * @returns {Promise<void>} when `out` holds each program where its source lies, what they share, and what they read
 */
async function compileSources(root, out, tree) {
  const files = projectFiles(root);
  const sources = files.filter((file) => file.endsWith('.ts'));
  await build({
    entryPoints: programs(root, sources).map((file) => join(root, file)),
    outbase: root,
    outdir: out,
    chunkNames: 'shared/[name]-[hash]',
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    // What Node takes: tfjs-node's classes, of an older JavaScript, cannot extend those of tfjs's other form.
    mainFields: ['main'],
    target: `node${process.versions.node}`,
    sourcemap: true,
    sourcesContent: false,
    logLevel: 'warning',
    // What CommonJS packages ask for of Node.
    banner: {
      js: "import { createRequire as requireOf } from 'node:module';const require = requireOf(import.meta.url);",
    },
    define: { 'import.meta.url': 'MODULE_URL', 'import.meta.dirname': 'MODULE_FOLDER' },
    plugins: [ownPlaces(root, tree), packages(root)],
  });
  // What the sources read that lies beside them, and the packages.
  for (const file of files) {
    if (sources.includes(file)) continue;
    mkdirSync(dirname(join(out, file)), { recursive: true });
    symlinkSync(join(root, file), join(out, file));
  }
  symlinkSync(join(root, 'node_modules'), join(out, 'node_modules'));
  writeFileSync(join(out, 'package.json'), readFileSync(join(root, 'package.json')));
}

/** A call of `compiled` with the place of a program, as written in a source beside it. */
const STARTS = /\bcompiled\(\s*new URL\('([^']+\.ts)', import\.meta\.url\)/g;

/**
 * The sources that some source starts, and each folder's main program.
 * @param {string} root @param {string[]} sources
 */
function programs(root, sources) {
  const named = sources.flatMap((source) => {
    const text = readFileSync(join(root, source), 'utf8');
    return [...text.matchAll(STARTS)].map(([, path = '']) => join(dirname(source), path));
  });
  const mains = FOLDERS.map((folder) => join(folder, 'main.ts'));
  return [...new Set([...mains, ...named])].filter((file) => sources.includes(file));
}

/**
 * A module finds what lies beside it as if it still lay there, though it is now part of another file.
 * @param {string} root @param {string} tree @returns {import('esbuild').Plugin}
 */
function ownPlaces(root, tree) {
  return {
    name: 'own-places',
    setup({ onLoad }) {
      onLoad({ filter: /\.m?[jt]s$/ }, ({ path }) => {
        const file = relative(root, path);
        if (file.startsWith('node_modules')) return undefined;
        const contents = readFileSync(path, 'utf8');
        const url = JSON.stringify(pathToFileURL(join(tree, file)).href);
        const folder = JSON.stringify(join(tree, dirname(file)));
        // On the first line, so that the map of lines stays true.
        return {
          loader: path.endsWith('.ts') ? 'ts' : 'js',
          contents: `const MODULE_URL = ${url}, MODULE_FOLDER = ${folder};${contents}`,
        };
      });
    },
  };
}

/**
 * Takes the packages in PACKAGES, and leaves all others where they are.
 * @param {string} root @returns {import('esbuild').Plugin}
 */
function packages(root) {
  const isAsked = true;
  return {
    name: 'packages',
    setup({ onResolve, resolve }) {
      onResolve({ filter: /^[^./]/ }, async ({ path, pluginData, ...from }) => {
        const isTheirs = relative(root, from.importer).startsWith('node_modules');
        if (from.kind === 'entry-point' || isTheirs || pluginData === isAsked) return undefined;
        if (!PACKAGES.some((name) => path === name || path.startsWith(`${name}/`)))
          return { path, external: true };
        if (!path.startsWith('@tensorflow/')) return undefined;
        // Its list of files whose import has an effect leaves out those that Node takes.
        const { importer, kind, resolveDir } = from;
        const found = await resolve(path, { importer, kind, resolveDir, pluginData: isAsked });
        return { ...found, sideEffects: true };
      });
    },
  };
}

const [root, out, tree] = process.argv.slice(2);
if (root !== undefined && out !== undefined && tree !== undefined)
  await compileSources(root, out, tree);
