#!/usr/bin/env node
// The `videoloom` command.
import { pathToFileURL } from 'node:url';
import { compiled } from '../proto/compiled.mjs';

await import(pathToFileURL(compiled(new URL('main.ts', import.meta.url))).href);
