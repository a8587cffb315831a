// Node's own reports (spec on a terminal, TAP in a pipe), and after their closing lines the tests that failed. TAP
// tells of a failure only where it happens: thousands of lines before the end, which a CI's log keeps alone.
import { spec, tap } from 'node:test/reporters';
import { pipeline, Readable } from 'node:stream';
import { inspect } from 'node:util';

export default async function* (events) {
  if (process.stdout.isTTY) {
    yield* pipeline(Readable.from(events), new spec(), () => {});
    return;
  }
  const failed = [];
  const said = new Map(); // the end of what each file wrote on stderr
  yield* tap(
    (async function* () {
      for await (const event of events) {
        const { type, data } = event;
        if (type === 'test:fail') failed.push(data);
        if (type === 'test:stderr')
          said.set(data.file, ((said.get(data.file) ?? '') + data.message).slice(-2000));
        yield event;
      }
    })(),
  );
  for (const { name, file, details } of failed) {
    // A suite, or a test of tests, fails with its first failed one, which stands here by itself.
    if (details.error.failureType === 'subtestsFailed') continue;
    const why = inspect(details.error.cause ?? details.error).slice(0, 4000);
    // A file that did not end well by itself failed no test: what it wrote last tells more.
    const what = name === file ? `${why}\n${said.get(file) ?? ''}` : why;
    yield `# failed: ${name} (${file})\n${what.replaceAll(/^/gm, '#   ')}\n`;
  }
}
