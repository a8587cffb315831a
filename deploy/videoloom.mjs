#!/usr/bin/env node
// The `videoloom` command.
import module from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { compiled, compiledRoot } from '../proto/compiled.mjs';

// From Node 22 on.
module.enableCompileCache?.(join(compiledRoot(), 'code'));
await import(pathToFileURL(compiled(new URL('main.ts', import.meta.url))).href);
