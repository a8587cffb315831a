'use strict';
// Runs the specs that tfjs-core ships for backends against ours. They are CommonJS once tsx has read them, share state
// through modules (so that `require` must load them all), and use the globals of jasmine 4: hence this file's format.
// `node --import tsx worker/backend/test/conformance.cjs [--engine cpu] [--grep <pattern>] [--verbose]`

const { parseArgs } = require('node:util');

const Jasmine = require('jasmine');

const { values: flags } = parseArgs({
  options: {
    engine: { type: 'string', default: 'xla' },
    grep: { type: 'string' },
    verbose: { type: 'boolean', default: false },
  },
});

async function main() {
  const { openBackend, Verdicts } = await import('./conformance-run.ts');
  const close = await openBackend(flags.engine);
  const runner = new Jasmine();
  const { setTestEnvs } = require('@tensorflow/tfjs-core/dist/jasmine_util');
  setTestEnvs([{ name: flags.engine, backendName: flags.engine, isDataSync: true }]);
  require('@tensorflow/tfjs-core/dist/tests');

  const verdicts = new Verdicts(flags);
  const isWanted = flags.grep === undefined ? () => true : matcher(flags.grep);
  runner.env.configure({
    random: false,
    specFilter: (spec) => isWanted(spec.getFullName()),
  });
  runner.clearReporters();
  runner.addReporter(verdicts);
  runner.exitOnCompletion = false;
  await runner.execute();
  const isAsExpected = verdicts.print();
  close();
  process.exitCode = isAsExpected ? 0 : 1;
}

function matcher(pattern) {
  const regex = new RegExp(pattern);
  return (name) => regex.test(name);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
