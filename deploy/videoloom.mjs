#!/usr/bin/env node
// The `videoloom` command.
import module from 'node:module';
import { pathToFileURL } from 'node:url';
import { codeCacheOf, compiled, compiledRoot } from '../proto/compiled.mjs';

// Node from 22 on keeps what V8 makes of programs: 5 to 8 % of a launch. Children learn of it from the environment.
process.env.NODE_COMPILE_CACHE ??= codeCacheOf(compiledRoot());
module.enableCompileCache?.(process.env.NODE_COMPILE_CACHE);

await import(pathToFileURL(compiled(new URL('main.ts', import.meta.url))).href);
