/** Hugging Face's transformers with peft, which decoders, adapters and generation are compared with. */
import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import { messageOf } from '../../../proto/errors.ts';
import { userCacheDir } from '../../../proto/user-cache.mjs';
import { ensurePeer, TORCH, type Peer } from '../../bench/peer-venv.ts';

const PEER: Peer = {
  label: 'transformers',
  packages: [
    'peft==0.21.2',
    'transformers==5.23.0',
    'gguf==0.19.0',
    TORCH,
    'numpy',
    'jinja2',
    'pillow==12.0.0',
  ],
  script: 'decoders.py',
  args: [],
};
const SCRIPTS = path.join(import.meta.dirname, '..', 'peers');
const TIMEOUT_MS = 600_000;

/** Runs a script of `peers/` in the environment, which is made on first use; gives what it printed. */
export async function runPeer(script: string, ...args: readonly string[]): Promise<string> {
  const python = await ensurePeer(userCacheDir(process.env), PEER);
  const { stdout } = await promisify(execFile)(python, [path.join(SCRIPTS, script), ...args], {
    timeout: TIMEOUT_MS,
    maxBuffer: 64 * 2 ** 20,
    env: { ...process.env, HF_HUB_OFFLINE: '1' },
  });
  return stdout;
}

/** Why the environment cannot be had, for tests to skip with; undefined where it is there. */
export async function whyNoPeer(): Promise<string | undefined> {
  try {
    await ensurePeer(userCacheDir(process.env), PEER);
    return undefined;
  } catch (error) {
    return `transformers cannot be installed: ${messageOf(error)}`;
  }
}
