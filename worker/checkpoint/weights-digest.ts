import { createHash } from 'node:crypto';
import { digestLine } from './hash.ts';
import { storedParameters } from './stored-parameters.ts';

/**
 * What `weightsSha256` gives for the parameters of a checkpoint, read in pieces, so that any size fits.
 * @throws VideoloomError CHECKPOINT_INVALID; SafetensorsInvalid; the system's errors
 */
export async function checkpointWeightsSha256(dir: string): Promise<string> {
  const hash = createHash('sha256');
  for (const parameter of await storedParameters(dir)) {
    hash.update(digestLine(parameter.entry.name, parameter.entry));
    for await (const chunk of parameter.read()) hash.update(chunk);
  }
  return hash.digest('hex');
}
