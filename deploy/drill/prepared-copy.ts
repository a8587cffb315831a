import { cp, mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Prepared } from '../cluster.ts';

/** What a run adds to the folder that was prepared for it. */
const OF_THE_RUN =
  /^(journal\.jsonl.*|checkpoints|logs|summary\.json|coordinator\.(json|lock).*|tmp|black-box.*|blackbox.*)$/;

/** A folder in which the same run can be trained once more from its beginning. */
export async function copyPrepared(prepared: Prepared, folder: string): Promise<Prepared> {
  await mkdir(folder, { recursive: true });
  for (const name of await readdir(prepared.folder)) {
    if (OF_THE_RUN.test(name)) continue;
    await cp(join(prepared.folder, name), join(folder, name), { recursive: true });
  }
  return { ...prepared, folder };
}
