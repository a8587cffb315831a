/** The curation commands by themselves, as a program that a test can kill. */
import { Command } from 'commander';
import { reportFatal } from '../../../proto/errors.ts';
import { addCurationCommands } from '../commands.ts';

const program = new Command('videoloom data');
addCurationCommands(program);
program.parseAsync(process.argv).catch((error: unknown) => {
  process.exitCode = reportFatal(error);
});
