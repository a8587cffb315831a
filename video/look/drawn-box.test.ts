import assert from 'node:assert/strict';
import { test } from 'node:test';
import { drawnBox } from './drawn-box.ts';

test('a box lies where its hundredths are on the picture', () => {
  const picture = { x: 24, y: 10, width: 200, height: 50 };
  const drawn = drawnBox({ box: [10, 20, 60, 80], of: 'data' }, picture);
  const places = [...drawn.matchAll(/x="([^"]*)" y="([^"]*)" width="([^"]*)" height="([^"]*)"/g)];
  assert.equal(places.length, 2);
  for (const [, ...place] of places) assert.deepEqual(place.map(Number), [44, 20, 100, 30]);
  assert.match(drawn, /stroke-dasharray/);
});
