import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { shellWord } from './shell-word.ts';

test('a path is quoted where a shell would take it for something else, and means the same to the shell', () => {
  assert.equal(shellWord('runs/video-bert_2.0'), 'runs/video-bert_2.0');
  for (const path of [
    'my films',
    "it's",
    '$HOME/`x`',
    'a;b&c',
    'ü*',
    '~films',
    '"',
    '',
    'line\nfeed',
  ])
    assert.equal(execFileSync('sh', ['-c', `printf %s ${shellWord(path)}`]).toString(), path);
});
