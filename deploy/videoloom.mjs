#!/usr/bin/env node
// The `videoloom` command.
import module from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { compiled, compiledRoot } from '../proto/compiled.mjs';

// Node from 22 on keeps what V8 makes of programs: 5 to 8 % of a launch. In their folder, so that it goes with them; children
// learn of it from the environment.
process.env.NODE_COMPILE_CACHE ??= join(compiledRoot(), 'v8');
module.enableCompileCache?.(process.env.NODE_COMPILE_CACHE);

await import(pathToFileURL(compiled(new URL('main.ts', import.meta.url))).href);
